//! The calm: the faults end, agents and channels keep the state that they are in, and everything must recover by itself.

use uuid::Uuid;
use visit_pacer::domain::schedule::Status;
use visit_pacer::domain::transport::Transport;

use super::{Event, MS, SECOND, World};
use crate::database::Row;

/// How long the recovery may take: a refused key is retried after five minutes at the most.
const WELL_WITHIN: i64 = 400 * SECOND;
/// How often the recovery is checked.
const LOOK_EVERY: i64 = 4 * SECOND;
/// How long every batch must be on time after that.
const ON_TIME: i64 = 12 * SECOND;
/// How long into the calm the effects of earlier faults may still be found: the next sync finds rows that a TRUNCATE deleted,
/// and takes them for rows whose DELETE events were lost; a sync finds that the canary is published; where no row proves a
/// channel dead, its canary does after a minute and ten seconds, and once more before the new socket.
const AFTERMATH: i64 = 175 * SECOND;
/// One seed of this many waits for the end of those effects.
const PATIENT: u64 = 8;

impl World {
    /// Ends the faults.
    pub fn calm_down(&mut self) {
        self.say(|| "calm".to_owned());
        self.storm = false;
        self.server.storm = false;
        self.server.away_until = 0;
        (self.away_until, self.read_only_until) = (0, 0);
        self.publish_the_canary(true);
        self.database.poisoned.clear();
        self.database.held_partners.clear();
        self.database.control_held = false;
        self.database.control.paused = false;
        let open: Vec<Uuid> = self.database.open.keys().copied().collect();
        for id in open {
            self.happen(Event::EndOfTransaction { id, commit: true });
        }
        for host in 0..self.hosts.len() {
            self.hosts[host].write_backs = 0;
            self.goes_on(host, self.hosts[host].life);
            self.after(0, Event::Starts(host));
        }
        self.let_rows_hurry();
    }

    /// A backlog drains at the row's own rate, which can take hours.
    fn let_rows_hurry(&mut self) {
        let slow = self.bound < 1_000;
        let ids: Vec<Uuid> = self.database.rows.keys().copied().collect();
        for id in ids {
            let resume = self.dice.percent(50);
            let distributed = self.database.progress.get(&id).map_or(0, |p| p.distributed);
            let hurry = |row: &mut Row| {
                row.catch_up = Some(1_000);
                row.terms.active |= resume;
                if slow {
                    row.terms.milli = row.terms.milli.min(3_000 * row.terms.period_s);
                    row.terms.total = row.terms.total.min(distributed + 200);
                }
            };
            self.edit(id, hurry, 0, true);
            if self.dice.percent(8) {
                self.database.poisoned.insert(id);
                self.left_poisoned.insert(id);
            }
        }
    }

    /// Edits continue in the calm, but do not affect the rate.
    pub fn edit_calmly(&mut self) {
        let catch_up = self.dice.between(900, 1_000);
        let ids: Vec<Uuid> = self.database.rows.keys().copied().collect();
        if let Some(id) = self.dice.pick(&ids) {
            self.edit(id, |row| row.catch_up = Some(catch_up), 0, true);
        }
    }

    /// Waits until everything has recovered; from then on every batch is on time, by one agent a row.
    pub fn come_right(&mut self) {
        let begun = self.now;
        loop {
            self.run_until(self.now + LOOK_EVERY);
            match self.what_is_wrong() {
                None => break,
                Some(wrong) => assert!(self.now < begun + WELL_WITHIN, "{wrong}"),
            }
        }
        if self.seed.is_multiple_of(PATIENT) {
            self.run_until(self.now.max(begun + AFTERMATH));
            self.settled = true;
        }
        self.say(|| "all is well".to_owned());
        self.database.on_time = true;
        self.database.one_agent_each = self.all_serve();
        self.database.last_storer.clear();
        self.run_until(self.now + ON_TIME);
        let wrong = self.what_is_wrong();
        assert!(
            wrong.is_none(),
            "all was well, and now: {}",
            wrong.unwrap_or_default()
        );
        self.check_write_backs(self.now - begun);
    }

    /// The write-back budget of all agents: 0.2 a second after a burst of 20, and completed rows.
    fn check_write_backs(&self, calm: i64) {
        let written: i64 = self.hosts.iter().map(|host| host.write_backs).sum();
        let finished = i64::try_from(self.database.rows.len()).expect("few");
        // Each agent may have begun with the whole burst, before it saw the others.
        let bursts = 20 * i64::try_from(self.hosts.len()).expect("few");
        let most = bursts + calm / SECOND / 5 + finished;
        assert!(written <= most, "{written} write-backs, {most} are allowed");
    }

    /// What was due of a row at the fire before last, and is neither stored nor given up.
    fn owes(&self, row: &Row) -> i64 {
        let clock = self.clock();
        let give_up_after = self.database.control.give_up_after_us;
        let given_up = row
            .terms
            .end
            .is_some_and(|end| end + give_up_after <= clock);
        if !row.is_sound() || !row.terms.active || given_up {
            return 0;
        }
        let due = self
            .database
            .reference
            .due(row.id, clock - SECOND - 100 * MS);
        (due - self.database.progress[&row.id].distributed).max(0)
    }

    fn what_is_wrong(&self) -> Option<String> {
        let rows = self.database.rows.values();
        rows.filter_map(|row| self.wrong_with_row(row))
            .chain((0..self.hosts.len()).filter_map(|host| self.wrong_with_host(host)))
            .chain(self.wrong_with_shares())
            .next()
    }

    /// It is on its curve, and its own column says so once it rests.
    fn wrong_with_row(&self, row: &Row) -> Option<String> {
        let id = row.id;
        if row.anchor.is_none() {
            return Some(format!("{id} was never anchored"));
        }
        let owes = self.owes(row);
        if owes > 0 && !self.left_poisoned.contains(&id) {
            return Some(format!("{id} owes {owes}"));
        }
        // No bucket refills until the clock has reached the time from which it stepped back.
        let bucket_at = self.database.progress[&id].bucket.at_column();
        if bucket_at.is_some_and(|at| at.as_micros() > self.clock()) {
            return Some(format!("the bucket of {id} is of a time to come"));
        }
        let distributed = self.database.progress[&id].distributed;
        let rests = row.is_sound() && (!row.terms.active || distributed >= row.terms.total);
        let written = row.written;
        (rests && written != distributed)
            .then(|| format!("{id} says {written} and has {distributed}"))
    }

    /// It is live, reaches the database, and knows each row.
    fn wrong_with_host(&self, name: usize) -> Option<String> {
        let host = &self.hosts[name];
        let Some(process) = &host.process else {
            return Some(format!("agent {name} does not run"));
        };
        let health = process.agent.health();
        let following = process.following;
        let hears_by = |transport| match transport {
            Transport::Changes => self.server.delivers_to(name, transport) || !following.canary,
            Transport::Broadcast => {
                self.server.delivers_to(name, transport) || !following.broadcast
            }
        };
        let hears = health.caught_up && Transport::ALL.into_iter().all(hears_by);
        // A channel may still be rejoined for events that it missed before.
        let may_rejoin = self.database.on_time && !(self.settled && following.canary);
        if !(hears || may_rejoin) || health.database_away_since.is_some() {
            return Some(format!("agent {name}: hears: {hears}, {health:?}"));
        }
        let (knows, are) = (process.agent.rows(), self.database.rows.len());
        if knows != are {
            return Some(format!("agent {name} knows {knows} of {are} rows"));
        }
        let looks = process.agent.statuses(host.mono(self.now));
        looks.iter().find_map(|look| {
            let Some(row) = self.database.rows.get(&look.id) else {
                return Some(format!(
                    "agent {name} knows a row that was deleted: {look:?}"
                ));
            };
            let fails = self.left_poisoned.contains(&look.id) && self.owes(row) > 0;
            let wrong = match look.status {
                Status::Invalid => row.is_sound() && !fails && self.owes(row) > 0,
                Status::Behind => true,
                Status::Scheduled
                | Status::Active
                | Status::Paused
                | Status::Draining
                | Status::Completed
                | Status::Ended => fails || !row.is_sound() || look.total != row.terms.total,
            };
            let counted = self.database.progress[&look.id].distributed;
            let wrong = wrong || (look.distributed != counted && process.agent.storing().is_none());
            wrong.then(|| format!("agent {name}: {look:?}"))
        })
    }

    /// Each row has one owner once all agents serve: an agent that failed and has nothing to store may keep rows that another
    /// one owns too. The others see at their next heartbeat that an agent has begun to serve.
    fn wrong_with_shares(&self) -> Option<String> {
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let owned: usize = processes.map(|process| process.agent.rows_owned()).sum();
        let rows = self.database.rows.len();
        let all_serve =
            self.all_serve() && (!self.database.on_time || self.database.one_agent_each);
        let wrong = owned < rows || (owned > rows && all_serve);
        wrong.then(|| format!("{owned} rows have an agent, there are {rows}"))
    }

    fn all_serve(&self) -> bool {
        self.hosts.iter().all(|host| {
            let process = host.process.as_ref();
            process.is_some_and(|process| process.agent.serves(host.mono(self.now)))
        })
    }
}
