//! What goes wrong, and who edits.

use super::{Control, DbTime, Event, Input, MS, News, Pending, Row, SECOND_US, Uuid, World};

/// Row ids and partners that there are.
const ROWS: i64 = 6;
const PARTNERS: i64 = 3;

impl World {
    pub(super) fn fault(&mut self) {
        match self.dice.between(0, 99) {
            0..=54 => self.edit_some_row(),
            55..=59 => self.insert_row(),
            60..=61 => self.truncate(),
            62..=64 => self.hold_partner(),
            65..=66 => self.hold_control(),
            67..=69 => self.pause_all(),
            70..=73 => self.crash(),
            74..=76 => self.database_away(),
            77..=84 => self.break_realtime(),
            85..=87 => self.poison(),
            88..=89 => self.step_clock(),
            90..=92 => self.add_by_hand(),
            93 => self.set_control(),
            _ => {}
        }
    }

    /// The storm is over: the faults of the world end; what the agents and their channels have come to stays as it is.
    pub(super) fn calm_down(&mut self) {
        self.trail.say(self.now, "calm");
        self.storm = false;
        self.database_away_until = 0;
        self.database.poisoned.clear();
        self.database.held_partners.clear();
        self.database.control_held = false;
        self.database.control.paused = false;
        let open: Vec<Uuid> = self.database.open.keys().copied().collect();
        for id in open {
            if let Some(change) = self.database.end(id, true) {
                self.publish(change);
            }
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].agent.is_none() {
                self.after(0, Event::Starts(host));
            }
            if !self.hosts[host].feed.live {
                self.rejoin(host, true);
            }
        }
        // A backlog drains at the row's own pace, which can take hours: let it hurry.
        for host in &mut self.hosts {
            host.write_backs = 0;
        }
        let ids: Vec<Uuid> = self.database.rows.keys().copied().collect();
        for id in ids {
            let resume = self.dice.percent(50);
            let hurry = |row: &mut Row| {
                row.catch_up = Some(1_000);
                row.active |= resume;
            };
            self.edit(id, hurry, 0, true);
        }
    }

    /// Edits go on in the calm, but leave the pace as it is.
    pub(super) fn edit_calmly(&mut self) {
        let catch_up = self.dice.between(900, 1_000);
        if let Some(id) = self.some_row() {
            self.edit(id, |row| row.catch_up = Some(catch_up), 0, true);
        }
    }

    fn clock(&self) -> DbTime {
        self.database.clock(self.now)
    }

    fn some_row(&mut self) -> Option<Uuid> {
        let ids: Vec<Uuid> = self.database.rows.keys().copied().collect();
        self.dice.pick(&ids)
    }

    fn some_partner(&mut self) -> Uuid {
        let n = self.dice.between(1, PARTNERS);
        Uuid::from_u128(1_000 + u128::from(n.unsigned_abs()))
    }

    fn rate(&mut self) -> i64 {
        match self.dice.between(0, 3) {
            0 => self.dice.between(10, 1_000),
            1 => self.dice.between(1, 20) * 1_000,
            2 => self.dice.between(1, 90_000),
            _ => 3_333,
        }
    }

    pub(super) fn insert_row(&mut self) {
        let n = self.dice.between(1, ROWS);
        let id = Uuid::from_u128(u128::from(n.unsigned_abs()));
        if self.database.rows.contains_key(&id) {
            return;
        }
        let start = self
            .clock()
            .plus_micros(self.dice.between(-20, 10) * SECOND_US);
        let window = self.dice.between(1, 90) * SECOND_US;
        let row = Row {
            id,
            partner: self.some_partner(),
            active: self.dice.percent(90),
            total: self.dice.between(0, 6_000),
            milli_per_second: self.rate(),
            start,
            end: self.dice.percent(50).then(|| start.plus_micros(window)),
            catch_up: self.dice.percent(20).then_some(3),
            anchored: None,
            written: 0,
        };
        let trigger = self.dice.percent(90) || self.database.progress.contains_key(&id);
        let bad = !trigger && self.dice.percent(30);
        let row = Row {
            milli_per_second: if bad { -1 } else { row.milli_per_second },
            ..row
        };
        let clock = self.clock();
        let change = self.database.insert(row, clock, trigger);
        self.publish(change);
    }

    fn edit_some_row(&mut self) {
        let Some(id) = self.some_row() else { return };
        let clock = self.clock();
        let rate = self.rate();
        let partner = self.some_partner();
        let total = self.dice.between(0, 6_000);
        let seconds = self.dice.between(-30, 60);
        let moved = clock.plus_micros(seconds * SECOND_US);
        let open_for = if self.dice.percent(30) {
            self.dice.between(1, 4_000) * MS
        } else {
            0
        };
        let commit = self.dice.percent(85);
        match self.dice.between(0, 12) {
            0..=2 => self.edit(id, |row| row.active = false, open_for, commit),
            3..=5 => self.edit(id, |row| row.active = true, open_for, commit),
            6..=7 => self.edit(id, |row| row.milli_per_second = rate, open_for, commit),
            8 => self.edit(id, |row| row.total = total, open_for, commit),
            9 => self.edit(
                id,
                |row| row.end = (seconds > 0).then_some(moved.max(row.start.plus_micros(1))),
                open_for,
                commit,
            ),
            10 => self.edit(
                id,
                |row| row.start = row.end.map_or(moved, |end| moved.min(end.plus_micros(-1))),
                open_for,
                commit,
            ),
            11 => self.edit(id, |row| row.partner = partner, open_for, commit),
            _ => self.begin(id, Pending::Delete, open_for, commit),
        }
    }

    /// An editor's UPDATE, as the trigger has it at this moment, and its commit after a while.
    fn edit(&mut self, id: Uuid, edit: impl FnOnce(&mut Row), open_for: i64, commit: bool) {
        let clock = self.clock();
        let Some(row) = self
            .database
            .rows
            .get(&id)
            .filter(|row| row.anchored.is_some())
        else {
            return;
        };
        let mut new = row.edited(clock, edit);
        if row.active && !new.active {
            new.written = self.database.progress[&id].distributed;
        }
        self.begin(id, Pending::Update(new), open_for, commit);
    }

    fn begin(&mut self, id: Uuid, pending: Pending, open_for: i64, commit: bool) {
        if self.database.open.contains_key(&id) {
            return;
        }
        self.database.open.insert(id, pending);
        if open_for == 0 {
            self.happen(Event::EndOfTransaction { id, commit });
        } else {
            self.after(open_for, Event::EndOfTransaction { id, commit });
        }
    }

    fn truncate(&mut self) {
        if self.database.open.is_empty() {
            self.trail.say(self.now, "truncated");
            self.database.rows.clear();
        }
    }

    fn hold_partner(&mut self) {
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
        self.database.control.paused = true;
        let open_for = self.dice.between(100, 6_000) * MS;
        self.after(open_for, Event::Resume);
    }

    fn set_control(&mut self) {
        let before = self.database.control.catch_up_milli;
        self.database.greatest_catch_up = self.database.greatest_catch_up.max(before);
        self.database.control = Control {
            catch_up_milli: self.dice.between(1_000, 5_000),
            ..self.database.control
        };
    }

    /// kill -9: all memory is lost, and whatever was sent is still on its way.
    fn crash(&mut self) {
        let host = usize::try_from(self.dice.between(0, 1)).expect("small") % self.hosts.len();
        self.trail.say(self.now, &format!("agent {host} is killed"));
        let place = &mut self.hosts[host];
        place.agent = None;
        place.life += 1;
        place.tick_at = None;
        place.feed.down();
        let pause = self.dice.between(1, 3_000) * MS;
        self.after(pause, Event::Starts(host));
    }

    fn database_away(&mut self) {
        self.trail.say(self.now, "the database goes away");
        self.database_away_until = self.now + self.dice.between(10, 8_000) * MS;
        self.database.open.clear();
        self.database.held_partners.clear();
        self.database.control_held = false;
    }

    fn break_realtime(&mut self) {
        let host = usize::try_from(self.dice.between(0, 1)).expect("small") % self.hosts.len();
        match self.dice.between(0, 3) {
            0 => {
                let (new_socket, longer) = (self.dice.percent(50), self.dice.percent(50));
                if longer {
                    self.hosts[host].feed.down();
                    self.feed_agent(host, Input::News(News::Down));
                } else {
                    self.rejoin(host, new_socket);
                }
            }
            1 => {
                self.hosts[host].feed.silent = true;
                self.hosts[host].feed.stubborn = self.dice.percent(40);
                self.trail.say(
                    self.now,
                    &format!("the channel of agent {host} is silent from now on"),
                );
            }
            2 => self.feed_agent(host, Input::News(News::Unclear)),
            _ => {
                if self.hosts[host].feed.live {
                    self.feed_agent(host, Input::News(News::Live));
                }
            }
        }
    }

    fn poison(&mut self) {
        if let Some(id) = self.some_row()
            && !self.database.poisoned.remove(&id)
        {
            self.database.poisoned.insert(id);
        }
    }

    fn step_clock(&mut self) {
        let by = self.dice.between(-10, 10) * SECOND_US + self.dice.between(-SECOND_US, SECOND_US);
        self.trail
            .say(self.now, &format!("the database's clock steps by {by} µs"));
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
        let left = row.total - self.database.progress.get(&id).map_or(0, |p| p.distributed);
        if row.active && row.anchored.is_some() && left > 0 {
            self.database.add_by_hand(id, visits.min(left), self.now);
        }
    }
}
