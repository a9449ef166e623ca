//! Faults and edits.

use uuid::Uuid;
use visit_pacer::domain::schedule::Stall;

use super::{Event, MS, SECOND, STOP_WITHIN, World};
use crate::database::{Pending, Row};
use crate::host::Arrival;
use crate::reference::Terms;

/// Row ids and partners that there are.
const ROWS: i64 = 6;
const PARTNERS: i64 = 3;

impl World {
    pub fn next_fault(&mut self) {
        let pause = if self.storm {
            self.look_around();
            self.failure();
            self.dice.between(20, 900) * MS
        } else {
            self.edit_calmly();
            self.dice.between(1_000, 9_000) * MS
        };
        self.after(pause, Event::Failure);
    }

    fn failure(&mut self) {
        match self.dice.between(0, 99) {
            0..=44 => self.edit_some_row(),
            45..=50 => self.insert_row(),
            51 => self.truncate(),
            52..=54 => self.hold(),
            55..=56 => self.hold_control(),
            57..=58 => self.pause_all(),
            59..=63 => self.kill(),
            64..=68 => self.stop(),
            69..=70 => self.terminate(),
            71..=72 => self.database_away(),
            73..=74 => self.database_read_only(),
            75..=84 => {
                let host = self.dice.index(self.hosts.len());
                let said = self.server.break_socket(host, &mut self.dice);
                self.server_says(said);
            }
            85 => {
                let said = self.server.restart(self.now, &mut self.dice);
                self.server_says(said);
            }
            86..=88 => self.poison(),
            89..=91 => self.step_clock(),
            92..=93 => self.add_by_hand(),
            94 => self.set_control(),
            95..=97 => self.delete_visits(),
            98 => {
                self.publish_the_canary(false);
                let later = self.dice.between(1, 20) * SECOND;
                self.after(later, Event::Publish);
            }
            _ => {
                let run = !self.database.broadcasts;
                self.database.broadcasts = run;
                self.say(|| format!("edits are broadcast: {run}"));
                self.seen.saw(if run {
                    "broadcast.sql is run"
                } else {
                    "broadcast.sql is taken back"
                });
            }
        }
    }

    /// Why rows are behind, as the agents see it.
    fn look_around(&mut self) {
        for host in &self.hosts {
            let Some(process) = &host.process else {
                continue;
            };
            for look in process.agent.statuses(host.mono(self.now)) {
                if look.stall == Some(Stall::Bucket) {
                    self.seen.saw("a backlog drains by the bucket");
                }
            }
        }
    }

    fn some_row(&mut self) -> Option<Uuid> {
        let ids: Vec<Uuid> = self.database.rows.keys().copied().collect();
        self.dice.pick(&ids)
    }

    fn some_partner(&mut self) -> Uuid {
        let n = self.dice.between(1, PARTNERS);
        Uuid::from_u128(1_000 + u128::from(n.unsigned_abs()))
    }

    /// Thousandths of a visit in a period, and its seconds: up to 90 visits a second.
    fn rate(&mut self) -> (i64, i64) {
        let period_s = self.dice.pick(&[1, 1, 1, 60, 3_600, 86_400]).expect("some");
        let per_second = match self.dice.between(0, 3) {
            0 => self.dice.between(10, 1_000),
            1 => self.dice.between(1, 20) * 1_000,
            2 => self.dice.between(1, 90_000),
            _ => 3_333,
        };
        (
            per_second * period_s + self.dice.between(0, period_s - 1),
            period_s,
        )
    }

    pub fn insert_row(&mut self) {
        let n = self.dice.between(1, ROWS);
        let id = Uuid::from_u128(u128::from(n.unsigned_abs()));
        if self.database.rows.contains_key(&id) {
            return;
        }
        let again = self.database.progress.contains_key(&id);
        let triggers = self.dice.percent(90) || again;
        let bad = !triggers && self.dice.percent(30);
        let start = self.clock() + self.dice.between(-20, 10) * SECOND;
        let window = self.dice.between(1, 90) * SECOND;
        let (milli, period_s) = self.rate();
        let terms = Terms {
            partner: self.some_partner(),
            active: self.dice.percent(90),
            total: self.dice.between(0, 3_000),
            milli: if bad { -1 } else { milli },
            period_s,
            start,
            end: self.dice.percent(50).then_some(start + window),
        };
        let catch_up = self.dice.percent(20).then_some(3);
        let row = Row {
            id,
            terms,
            catch_up,
            anchor: None,
            written: 0,
            changed: None,
        };
        let clock = self.clock();
        let change = self.database.insert(row, clock, triggers);
        if again {
            self.seen.saw("a row is deleted, and its id inserted again");
        }
        if !triggers {
            self.seen.saw("a row is inserted that no trigger sees");
        }
        self.publish(&change);
    }

    fn edit_some_row(&mut self) {
        let Some(id) = self.some_row() else { return };
        let (milli, period_s) = self.rate();
        let partner = self.some_partner();
        let total = self.dice.between(0, 3_000);
        let seconds = self.dice.between(-30, 60);
        let moved = self.clock() + seconds * SECOND;
        let open_for = if self.dice.percent(30) {
            self.dice.between(1, 4_000) * MS
        } else {
            0
        };
        let commit = self.dice.percent(85);
        let kind = self.dice.between(0, 13);
        if kind == 13 {
            let xid = self.database.next_xid();
            return self.begin(id, Pending::Delete(xid), open_for, commit);
        }
        let edit = |row: &mut Row| {
            let terms = &mut row.terms;
            match kind {
                0..=2 => terms.active = false,
                3..=5 => terms.active = true,
                6..=7 => (terms.milli, terms.period_s) = (milli, period_s),
                8 | 9 => terms.total = total,
                10 => terms.end = (seconds > 0).then_some(moved.max(terms.start + 1)),
                11 => terms.start = terms.end.map_or(moved, |end| moved.min(end - 1)),
                _ => terms.partner = partner,
            }
        };
        self.edit(id, edit, open_for, commit);
    }

    /// An editor's UPDATE, with the trigger at this moment, and its commit after a while.
    pub fn edit(&mut self, id: Uuid, edit: impl FnOnce(&mut Row), open_for: i64, commit: bool) {
        let clock = self.clock();
        if let Some(row) = self.database.edited(id, clock, edit) {
            self.begin(id, Pending::Update(Box::new(row), clock), open_for, commit);
        }
    }

    fn begin(&mut self, id: Uuid, pending: Pending, open_for: i64, commit: bool) {
        if self.database.open.contains_key(&id) {
            return;
        }
        self.database.open.insert(id, pending);
        let end = Event::EndOfTransaction { id, commit };
        if open_for == 0 {
            self.happen(end);
        } else {
            self.after(open_for, end);
        }
    }

    fn truncate(&mut self) {
        if self.database.open.is_empty() {
            self.say(|| "truncated".to_owned());
            self.seen.saw("the table is truncated");
            self.database.truncate();
        }
    }

    /// A session locks a row, or a partner.
    fn hold(&mut self) {
        if let Some(id) = self.some_row().filter(|_| self.dice.percent(50)) {
            let open_for = self.dice.between(100, 5_000) * MS;
            self.begin(id, Pending::Hold, open_for, false);
        }
        let partner = self.some_partner();
        self.database.held_partners.insert(partner);
        let open_for = self.dice.between(1, 4_000) * MS;
        self.after(open_for, Event::ReleasePartner(partner));
    }

    fn hold_control(&mut self) {
        self.database.control_held = true;
        let open_for = self.dice.between(1, 3_000) * MS;
        self.after(open_for, Event::ReleaseControl);
    }

    fn pause_all(&mut self) {
        self.say(|| "everything is paused".to_owned());
        self.seen.saw("everything is paused");
        self.database.control.paused = true;
        let open_for = self.dice.between(100, 6_000) * MS;
        self.after(open_for, Event::Resume);
    }

    fn set_control(&mut self) {
        let control = &mut self.database.control;
        self.database.greatest_catch_up =
            self.database.greatest_catch_up.max(control.catch_up_milli);
        control.catch_up_milli = self.dice.between(1_000, 5_000);
    }

    /// kill -9: all memory is lost; what was sent is still on its way.
    fn kill(&mut self) {
        let host = self.dice.index(self.hosts.len());
        if self.hosts[host].process.is_none() {
            return;
        }
        self.say(|| format!("agent {host} is killed"));
        self.seen.saw("an agent is killed");
        self.end_of_life(host);
    }

    /// The process has ended; another one starts after a while.
    fn end_of_life(&mut self, host: usize) {
        if let Some(socket) = self.hosts[host].die() {
            self.after(5 * MS, Event::HangsUp(socket));
        }
        let pause = if self.dice.percent(70) {
            self.dice.between(1, 3_000)
        } else {
            self.dice.between(3_000, 15_000)
        };
        self.after(pause * MS, Event::Starts(host));
    }

    /// SIGSTOP: nothing is handled; what was sent continues without it.
    fn stop(&mut self) {
        let host = self.dice.index(self.hosts.len());
        let place = &mut self.hosts[host];
        if place.process.is_none() || place.stopped {
            return;
        }
        place.stopped = true;
        let life = place.life;
        let longest = if self.dice.percent(50) { 3_000 } else { 30_000 };
        let pause = self.dice.between(50, longest) * MS;
        self.say(|| format!("agent {host} is stopped for {} s", pause / SECOND));
        self.after(pause, Event::GoesOn(host, life));
    }

    pub fn goes_on(&mut self, host: usize, life: u32) {
        if self.hosts[host].life != life || !self.hosts[host].stopped {
            return;
        }
        if self.storm && self.dice.percent(25) {
            self.say(|| format!("agent {host} dies while it is stopped"));
            self.seen.saw("an agent is stopped, and dies");
            return self.end_of_life(host);
        }
        self.say(|| format!("agent {host} goes on"));
        self.seen.saw("an agent is stopped, and goes on");
        for arrival in self.hosts[host].go_on() {
            self.give(host, arrival);
        }
        self.give(host, Arrival::Wake);
    }

    /// SIGTERM: it finishes the jobs in hand, releases its rows, and ends.
    fn terminate(&mut self) {
        let host = self.dice.index(self.hosts.len());
        if self.hosts[host].process.is_none() || self.hosts[host].stopped {
            return;
        }
        self.say(|| format!("agent {host} is asked to end"));
        let life = self.hosts[host].life;
        self.leaving.insert((host, life));
        self.after(STOP_WITHIN, Event::Exits(host, life));
        self.give(host, Arrival::Terminate);
    }

    pub fn exits(&mut self, host: usize, life: u32) {
        let place = &mut self.hosts[host];
        if place.life != life
            || place.process.is_none()
            || place.stopped
            || !self.leaving.remove(&(host, life))
        {
            return;
        }
        for deed in place.leave(self.now, &mut self.dice) {
            self.do_for(host, deed);
        }
        self.say(|| format!("agent {host} has ended"));
        self.seen.saw("an agent ends cleanly");
        self.end_of_life(host);
    }

    fn database_away(&mut self) {
        self.say(|| "the database goes away".to_owned());
        self.seen.saw("the database goes away");
        self.away_until = self.now + self.dice.between(10, 8_000) * MS;
        self.database.open.clear();
        self.database.held_partners.clear();
        self.database.control_held = false;
    }

    fn database_read_only(&mut self) {
        self.say(|| "the database refuses every write".to_owned());
        self.seen.saw("the database refuses every write");
        self.read_only_until = self.now + self.dice.between(10, 5_000) * MS;
    }

    fn poison(&mut self) {
        if let Some(id) = self.some_row()
            && !self.database.poisoned.remove(&id)
        {
            self.say(|| format!("inserts for {id} fail from now on"));
            self.database.poisoned.insert(id);
        }
    }

    fn step_clock(&mut self) {
        let by = self.dice.between(-10, 10) * SECOND + self.dice.between(-SECOND, SECOND);
        self.say(|| format!("the database's clock steps by {by} µs"));
        self.seen.saw(if by < 0 {
            "the clock steps back"
        } else {
            "the clock steps forward"
        });
        self.database.step_clock(by);
    }

    fn add_by_hand(&mut self) {
        let visits = self.dice.between(1, 50);
        let Some(id) = self
            .some_row()
            .filter(|id| !self.database.open.contains_key(id))
        else {
            return;
        };
        let row = &self.database.rows[&id];
        let left = row.terms.total - self.database.progress.get(&id).map_or(0, |p| p.distributed);
        if row.terms.active && row.anchor.is_some() && left > 0 {
            let clock = self.clock();
            self.seen.saw("visits are added by hand");
            self.database.add_by_hand(id, visits.min(left), clock);
        }
    }

    /// Deletes visits; some are stored again, some restored, some both.
    fn delete_visits(&mut self) {
        let Some(id) = self.some_row() else { return };
        let most = self.dice.index(40) + 1;
        let gone = self.database.delete_visits(id, most);
        if gone.is_empty() {
            return;
        }
        self.say(|| format!("{} visits of {id} are deleted", gone.len()));
        self.seen.saw("visits are deleted");
        if self.dice.percent(50) {
            let later = self.dice.between(100, 4_000) * MS;
            self.after(later, Event::Lower(id));
        }
        if self.dice.percent(60) {
            let later = self.dice.between(2_000, 9_000) * MS;
            self.seen.saw("visits are restored");
            self.after(later, Event::Restore(id, gone));
        }
    }
}
