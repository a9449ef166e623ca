//! The world: true time, and the messages that are on their way.
//!
//! Owns the queue of events and carries everything between hosts, database and Realtime server, with delays and losses.
//! After every event the promises are checked. Faults and edits are in `world/chaos.rs`, the recovery in `world/calm.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;
use visit_pacer::domain::agent::{Answer, BatchOutcome, MaintenanceTask, ReadRequest, TaskOutcome};
use visit_pacer::domain::batch::{Batch, BatchRow};
use visit_pacer::domain::echo_check::Reconnect;
use visit_pacer::domain::error_policy::{ErrorKind, Failure};
use visit_pacer::domain::event::Event as AgentEvent;
use visit_pacer::domain::time::{DbTime, Mono};
use visit_pacer::domain::transport::Transport;

use crate::database::{Change, Database, Storer, db_time};
use crate::dice::Dice;
use crate::host::{Arrival, Deed, Host, Statement};
use crate::realtime::{Said, Saying, Server, SocketId};
use crate::seen::Seen;

mod calm;
mod chaos;

pub const MS: i64 = 1_000;
pub const SECOND: i64 = 1_000_000;
/// How long there are faults.
const STORM: i64 = 30 * SECOND;
/// How long a stop waits for the batch in hand.
const STOP_WITHIN: i64 = 4 * SECOND;

/// An answer, with the database's clock if there is a round trip.
type TimedAnswer = (Answer, Option<DbTime>);

/// What happens to a statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Answered,
    /// A deadlock, a timeout, a limit: nothing was done.
    Refused,
    /// The connection is lost before it is carried out.
    LostBefore,
    /// … after.
    LostAfter,
    /// The agent loses the connection; later the statement is carried out all the same.
    Zombie,
}

#[derive(Debug)]
enum Event {
    /// A statement reaches the database.
    Arrives {
        statement: Statement,
        from: Sender,
        fate: Fate,
    },
    /// Something arrives at a process, if it is the one of this life. `committed`: whether an unknown outcome was a commit.
    Reaches {
        host: usize,
        life: u32,
        arrival: Arrival,
        committed: Option<bool>,
    },
    /// A client's frame arrives at the Realtime server.
    Heard(SocketId, String),
    Dials(SocketId),
    HangsUp(SocketId),
    Server(Said),
    Starts(usize),
    GoesOn(usize, u32),
    Exits(usize, u32),
    Failure,
    EndOfTransaction {
        id: Uuid,
        commit: bool,
    },
    ReleasePartner(Uuid),
    ReleaseControl,
    Resume,
    Restore(Uuid, Vec<i64>),
    Lower(Uuid),
    Publish,
}

/// Which life of which host, and when it sent.
#[derive(Clone, Copy, Debug)]
struct Sender {
    host: usize,
    life: u32,
    id: Uuid,
    sent: Mono,
    /// It has been answered already.
    told: bool,
}

pub struct World {
    now: i64,
    events: u64,
    queue: BTreeMap<(i64, u64), Box<Event>>,
    dice: Dice,
    database: Database,
    away_until: i64,
    read_only_until: i64,
    server: Server,
    hosts: Vec<Host>,
    /// Visits a second, of each agent.
    bound: u32,
    /// When each life planned what it stored, for its bound.
    spent: BTreeMap<(usize, u32), VecDeque<(i64, i64)>>,
    /// Rows that were refused because they were locked.
    held: BTreeSet<Uuid>,
    /// Lives that are stopping.
    leaving: BTreeSet<(usize, u32)>,
    storm: bool,
    /// From here on no effect of the faults is left that an agent could still find.
    settled: bool,
    /// Rows whose inserts still fail in the calm.
    left_poisoned: BTreeSet<Uuid>,
    seen: Seen,
    seed: u64,
    /// Shows what happens.
    aloud: bool,
}

/// One run of a seed: the faults, then the calm in which everything must recover by itself.
pub fn simulate(seed: u64, epoch: Instant, aloud: bool) -> (i64, Seen) {
    let mut world = World::new(seed, epoch, aloud);
    world.run_until(STORM);
    world.calm_down();
    world.come_right();
    let mut seen = world.seen;
    seen.add(&world.database.seen);
    seen.add(&world.server.seen);
    (world.database.stored, seen)
}

impl World {
    fn new(seed: u64, epoch: Instant, aloud: bool) -> Self {
        let mut dice = Dice::new(seed);
        let mut database = Database {
            canary_published: true,
            broadcasts: dice.percent(70),
            ..Database::default()
        };
        database.clock.offset = 1_800_000_000 * SECOND + dice.between(0, SECOND);
        database.clock.drift_ppm = dice.between(-100, 100);
        if dice.percent(20) {
            database.control.give_up_after_us = dice.between(1, 20) * SECOND;
        }
        let drifts: Vec<i64> = (0..dice.between(1, 3))
            .map(|_| dice.between(-200, 200))
            .collect();
        let hosts = drifts
            .iter()
            .enumerate()
            .map(|(name, drift)| Host::new(name, *drift, epoch));
        let hosts: Vec<Host> = hosts.collect();
        let mut world = Self {
            now: 0,
            events: 0,
            queue: BTreeMap::new(),
            bound: if dice.percent(15) { 60 } else { 2_000 },
            dice,
            database,
            away_until: 0,
            read_only_until: 0,
            server: Server::new(),
            hosts,
            spent: BTreeMap::new(),
            held: BTreeSet::new(),
            leaving: BTreeSet::new(),
            storm: true,
            settled: false,
            left_poisoned: BTreeSet::new(),
            seen: Seen::default(),
            seed,
            aloud,
        };
        for host in 0..world.hosts.len() {
            world.after(0, Event::Starts(host));
        }
        for _ in 0..world.dice.between(1, 6) {
            world.insert_row();
        }
        world.after(0, Event::Failure);
        world
    }

    fn after(&mut self, delay: i64, event: Event) {
        self.events += 1;
        self.queue
            .insert((self.now + delay.max(0), self.events), Box::new(event));
    }

    fn run_until(&mut self, end: i64) {
        while let Some(entry) = self
            .queue
            .first_entry()
            .filter(|entry| entry.key().0 <= end)
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(*event);
            self.database.check();
        }
        self.now = end;
    }

    fn clock(&self) -> i64 {
        self.database.clock.at(self.now)
    }

    fn say(&self, line: impl FnOnce() -> String) {
        if self.aloud {
            let at = Duration::from_micros(self.now.unsigned_abs()).as_secs_f64();
            eprintln!("{at:>11.6} {}", line());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives {
                statement,
                from,
                fate,
            } => self.arrives(statement, from, fate),
            Event::Reaches {
                host,
                life,
                arrival,
                committed,
            } => {
                self.reaches(host, life, arrival, committed);
            }
            Event::Heard(socket, text) => {
                let said = self.server.hears(socket, &text, &mut self.dice);
                self.server_says(said);
            }
            Event::Dials(socket) => {
                let arrival = match self.server.opens(socket, self.now, &mut self.dice) {
                    Some((status, words)) => Arrival::Refused(socket, status, words),
                    None => Arrival::Opened(socket),
                };
                self.send_to(socket.host, 10 * MS, arrival);
            }
            Event::HangsUp(socket) => self.server.closed(socket),
            Event::Server(said) => self.server_does(said),
            Event::Starts(host) => self.starts(host),
            Event::GoesOn(host, life) => self.goes_on(host, life),
            Event::Exits(host, life) => self.exits(host, life),
            Event::Failure => self.next_fault(),
            Event::EndOfTransaction { id, commit } => {
                if let Some(change) = self.database.end(id, commit) {
                    self.publish(&change);
                }
            }
            Event::ReleasePartner(id) => {
                self.database.held_partners.remove(&id);
            }
            Event::ReleaseControl => self.database.control_held = false,
            Event::Resume => self.database.control.paused = false,
            Event::Restore(id, numbers) => self.database.restore_visits(id, numbers),
            Event::Lower(id) => self.database.lower(id),
            Event::Publish => self.publish_the_canary(true),
        }
    }

    fn server_says(&mut self, said: Vec<Saying>) {
        for (delay, said) in said {
            self.after(delay, Event::Server(said));
        }
    }

    fn server_does(&mut self, said: Said) {
        match said {
            Said::Text(socket, text) => self.send_to(socket.host, 0, Arrival::Text(socket, text)),
            Said::Binary(socket, bytes) => {
                self.send_to(socket.host, 0, Arrival::Binary(socket, bytes));
            }
            Said::Closed(socket) => {
                self.server.closed(socket);
                self.send_to(socket.host, 0, Arrival::Closed(socket));
            }
            Said::Subscribed(socket, join_ref) => {
                let said = self.server.subscribed(socket, &join_ref);
                self.server_says(said.map(|said| (0, said)).into_iter().collect());
            }
        }
    }

    /// To the process of the host that is there now.
    fn send_to(&mut self, host: usize, delay: i64, arrival: Arrival) {
        let life = self.hosts[host].life;
        self.after(
            delay,
            Event::Reaches {
                host,
                life,
                arrival,
                committed: None,
            },
        );
    }

    fn starts(&mut self, name: usize) {
        if self.hosts[name].process.is_some() {
            return;
        }
        self.say(|| format!("agent {name} starts"));
        self.hosts[name].start(self.bound, self.now, &mut self.dice);
        self.give(name, Arrival::Wake);
    }

    fn reaches(&mut self, host: usize, life: u32, arrival: Arrival, committed: Option<bool>) {
        if self.hosts[host].life != life || self.hosts[host].process.is_none() {
            return;
        }
        if matches!(arrival, Arrival::Wake) {
            if self.hosts[host].alarm != Some(self.now) {
                return;
            }
            self.hosts[host].alarm = None;
        }
        match committed {
            Some(true) => self.seen.saw("an unknown outcome: it was committed"),
            Some(false) => self.seen.saw("an unknown outcome: it was not committed"),
            None => {}
        }
        self.give(host, arrival);
    }

    /// Gives a process what arrives, carries out its deeds, and sets its alarm.
    fn give(&mut self, name: usize, arrival: Arrival) {
        let deeds = self.hosts[name].takes(arrival, self.now, &mut self.dice);
        for deed in deeds {
            self.do_for(name, deed);
        }
        let life = self.hosts[name].life;
        let process = self.hosts[name].process.as_ref();
        if self.leaving.contains(&(name, life)) && process.is_some_and(|p| p.agent.is_idle()) {
            self.exits(name, life);
        }
        self.set_alarm(name);
    }

    fn set_alarm(&mut self, name: usize) {
        let host = &mut self.hosts[name];
        if let Some(at) = host.wakes_at(self.now)
            && host.alarm.is_none_or(|before| at < before)
        {
            host.alarm = Some(at);
            self.send_to(name, at - self.now, Arrival::Wake);
        }
    }

    fn do_for(&mut self, host: usize, deed: Deed) {
        match deed {
            Deed::Send(statement, sent) => {
                let life = self.hosts[host].life;
                let id = self.hosts[host]
                    .process
                    .as_ref()
                    .map_or(Uuid::nil(), |p| p.id);
                let (fate, delay) = (self.fate(), self.latency());
                let from = Sender {
                    host,
                    life,
                    id,
                    sent,
                    told: false,
                };
                self.after(
                    delay,
                    Event::Arrives {
                        statement,
                        from,
                        fate,
                    },
                );
            }
            Deed::Dial(socket) => {
                let delay = self.dice.between(1, 60) * MS;
                self.after(delay, Event::Dials(socket));
            }
            Deed::Say(socket, text) => self.after(5 * MS, Event::Heard(socket, text)),
            Deed::HangUp(socket) => self.after(5 * MS, Event::HangsUp(socket)),
            Deed::Emit(event) => self.emitted(host, &event),
            Deed::Reconnect(transport, reconnect) => self.reconnects(host, transport, reconnect),
            Deed::Down(down) => {
                self.say(|| format!("agent {host}: Realtime is down: {}", down.failure.message));
                if down.failure.kind == ErrorKind::Network
                    && down.failure.message.contains("heartbeat")
                {
                    self.seen.saw("a silent socket is found by its heartbeat");
                }
            }
            Deed::Follow(following) if !following.canary => self
                .seen
                .saw("the canary is not published, and not followed"),
            Deed::Follow(_) => {}
            Deed::KnewAlready => self.seen.saw("an event is known already"),
        }
    }

    fn emitted(&mut self, host: usize, event: &AgentEvent) {
        self.say(|| format!("agent {host}: {event:?}"));
        if event.is(&AgentEvent::QUARANTINED) {
            let bad = |id| self.database.ever_bad.contains(&id);
            let known = event.distribution_id.is_some_and(bad);
            assert!(
                known,
                "quarantined, and nothing was wrong with it: {event:?}"
            );
        }
        if event.is(&AgentEvent::AGENTS_CHANGED) && event.count == Some(1) {
            return;
        }
        for (seen, what) in [
            (AgentEvent::QUARANTINED, "a row is quarantined"),
            (AgentEvent::RELEASED, "a row is no longer quarantined"),
            (
                AgentEvent::EDITS_FOUND_BY_SYNC,
                "a sync finds edits of which Realtime did not tell",
            ),
            (AgentEvent::CLOCK_STEPPED, "a step of the clock is noticed"),
            (
                AgentEvent::DATABASE_UNAVAILABLE,
                "the database is found unavailable",
            ),
            (
                AgentEvent::DATABASE_AVAILABLE,
                "the database is found available again",
            ),
            (AgentEvent::AGENTS_CHANGED, "agents share the rows"),
            (AgentEvent::ANCHORED, "a row is anchored by the agent"),
            (
                AgentEvent::BROADCASTS_STARTED,
                "broadcasts are listened to as well",
            ),
            (
                AgentEvent::BROADCASTS_STOPPED,
                "broadcasts are listened to no more",
            ),
        ] {
            if event.is(&seen) {
                self.seen.saw(what);
            }
        }
    }

    fn reconnects(&mut self, host: usize, transport: Transport, reconnect: Reconnect) {
        self.say(|| format!("agent {host} finds its channel silent: {transport:?}, {reconnect:?}"));
        let hears = self.server.delivers_to(host, transport);
        assert!(
            !hears || !self.settled,
            "agent {host} hears everything, and finds its channel silent"
        );
        self.seen.saw(match (transport, reconnect) {
            (Transport::Changes, Reconnect::Rejoin) => "a silent channel is joined again",
            (Transport::Changes, Reconnect::Reopen) => "a silent channel gets a new socket",
            (Transport::Broadcast, Reconnect::Rejoin) => {
                "a silent broadcast channel is joined again"
            }
            (Transport::Broadcast, Reconnect::Reopen) => {
                "a silent broadcast channel gets a new socket"
            }
        });
    }

    fn latency(&mut self) -> i64 {
        if !self.storm {
            return self.dice.between(200, 9_000);
        }
        match self.dice.between(0, 99) {
            0 => self.dice.between(200, 4_000) * MS,
            1..=9 => self.dice.between(5, 200) * MS,
            _ => self.dice.between(100, 5_000),
        }
    }

    fn fate(&mut self) -> Fate {
        if !self.storm {
            return Fate::Answered;
        }
        match self.dice.between(0, 99) {
            0..=1 => Fate::LostBefore,
            2..=3 => Fate::LostAfter,
            4..=5 => Fate::Zombie,
            6..=7 => Fate::Refused,
            _ => Fate::Answered,
        }
    }

    /// A statement reaches the database, or where the database was.
    fn arrives(&mut self, statement: Statement, from: Sender, fate: Fate) {
        let reset = || Failure::new(ErrorKind::Lost, "reset");
        let lost = |statement: &Statement, certain: bool| match statement {
            Statement::Store(_) if certain => Answer::Stored(BatchOutcome::Unsent(reset())),
            Statement::Store(_) => Answer::Stored(BatchOutcome::Failed(reset())),
            Statement::Read(_) => Answer::Read(Err(reset())),
            Statement::Maintain(_) | Statement::Goodbye => Answer::Maintained(Err(reset())),
        };
        if self.now < self.away_until {
            let certain = self.dice.percent(50);
            let answer = lost(&statement, certain);
            let unknown = matches!(answer, Answer::Stored(BatchOutcome::Failed(_)));
            return self.answers(from, (answer, None), unknown.then_some(false));
        }
        let writes = !matches!(statement, Statement::Read(_));
        if fate == Fate::Refused || (writes && self.now < self.read_only_until) {
            self.seen.saw("a statement is refused for a passing reason");
            // A standby's refusal counts as a lost connection; a full disk or a deadlock does not.
            let certain = self.dice.percent(70);
            return self.answers(from, (lost(&statement, certain), None), None);
        }
        let is_batch = matches!(statement, Statement::Store(_));
        match fate {
            Fate::Answered | Fate::Refused => {
                let answer = self.carry_out(statement, from);
                self.answers(from, answer, None);
            }
            Fate::LostBefore => {
                self.seen
                    .saw("a statement is lost before it is carried out");
                self.answers(
                    from,
                    (lost(&statement, false), None),
                    is_batch.then_some(false),
                );
            }
            Fate::LostAfter => {
                let answer = lost(&statement, false);
                let (answered, _) = self.carry_out(statement, from);
                let committed =
                    matches!(answered, Answer::Stored(outcome) if stores_some(&outcome));
                if from.told && committed {
                    self.seen
                        .saw("a statement is carried out after its agent has given it up");
                } else if !from.told {
                    self.seen
                        .saw("a statement is carried out, and its answer lost");
                }
                self.answers(from, (answer, None), is_batch.then_some(committed));
            }
            Fate::Zombie => {
                self.answers(
                    from,
                    (lost(&statement, false), None),
                    is_batch.then_some(false),
                );
                let late = self.dice.between(1, 3_000) * MS;
                let from = Sender { told: true, ..from };
                self.after(
                    late,
                    Event::Arrives {
                        statement,
                        from,
                        fate: Fate::LostAfter,
                    },
                );
            }
        }
    }

    fn answers(&mut self, to: Sender, (answer, db): TimedAnswer, committed: Option<bool>) {
        if to.told {
            return;
        }
        let delay = self.latency();
        let arrival = Arrival::Answer(answer, db, to.sent);
        let (host, life) = (to.host, to.life);
        self.after(
            delay,
            Event::Reaches {
                host,
                life,
                arrival,
                committed,
            },
        );
    }

    fn carry_out(&mut self, statement: Statement, from: Sender) -> TimedAnswer {
        let clock = self.clock();
        let timed = |answer| (answer, Some(db_time(clock)));
        let alive =
            self.hosts[from.host].life == from.life && self.hosts[from.host].process.is_some();
        match statement {
            Statement::Store(batch) => {
                let outcome = self.store(&batch, from, clock);
                let stored = stores_some(&outcome);
                if stored && !alive {
                    self.seen
                        .saw("a statement of an agent that is no more is carried out");
                }
                (Answer::Stored(outcome), stored.then_some(db_time(clock)))
            }
            Statement::Read(request) => {
                let result = self.database.read(&request);
                match &request {
                    ReadRequest::Since(_) if result.more_after.is_some() => {
                        self.seen.saw("an incremental sync finds too much");
                    }
                    ReadRequest::Since(_) => self.seen.saw("an incremental sync"),
                    ReadRequest::After(_) => self.seen.saw("a full sync in parts"),
                    ReadRequest::All | ReadRequest::Rows(_) => {}
                }
                timed(Answer::Read(Ok(result)))
            }
            Statement::Maintain(MaintenanceTask::Canary(Transport::Broadcast))
                if !self.database.broadcasts =>
            {
                let why = "function visit_pacer_broadcast_canary() does not exist";
                (
                    Answer::Maintained(Err(Failure::new(ErrorKind::Schema, why))),
                    None,
                )
            }
            Statement::Maintain(task) => {
                timed(Answer::Maintained(Ok(self.maintain(task, from, clock))))
            }
            Statement::Goodbye => {
                self.database.agents.remove(&from.id);
                (
                    Answer::Maintained(Err(Failure::new(ErrorKind::Lost, "ended"))),
                    None,
                )
            }
        }
    }

    fn store(&mut self, batch: &Batch, from: Sender, clock: i64) -> BatchOutcome {
        let storer = Storer {
            host: from.host,
            life: from.life,
        };
        let held: Vec<Uuid> = self.database.open.keys().copied().collect();
        let stored = self.database.store(batch, storer, clock);
        let host = from.host;
        let (visits, rows, at) = (
            batch.visits(),
            batch.rows.len(),
            batch.rows[0].at.as_micros(),
        );
        self.say(|| match &stored {
            BatchOutcome::Committed(ids) => format!(
                "agent {host} stores {visits} visits of {rows} rows for {at}: {} rows stored",
                ids.len()
            ),
            BatchOutcome::Failed(failure) | BatchOutcome::Unsent(failure) => {
                format!("agent {host}: {}", failure.message)
            }
        });
        if let BatchOutcome::Committed(ids) = &stored {
            let taken = batch.rows.iter().filter(|row| ids.contains(&row.id));
            let visits = taken.map(BatchRow::visits).sum();
            self.check_bound(from, visits);
            for row in &batch.rows {
                if ids.contains(&row.id) && self.held.remove(&row.id) {
                    self.seen
                        .saw("a row that was held is tried again, and stored");
                } else if held.contains(&row.id) {
                    self.held.insert(row.id);
                }
            }
        }
        stored
    }

    /// The agent's limit, over any 5 s: five seconds' worth, and a second's at once.
    fn check_bound(&mut self, from: Sender, visits: i64) {
        let planned = from.sent.as_micros();
        let spent = self.spent.entry((from.host, from.life)).or_default();
        spent.push_back((planned, visits));
        spent.retain(|(at, _)| *at > planned - 10 * SECOND);
        let recent = spent
            .iter()
            .filter(|(at, _)| (planned - 5 * SECOND + 1..=planned).contains(at));
        let sum: i64 = recent.map(|(_, visits)| visits).sum();
        let most = 6 * i64::from(self.bound);
        assert!(
            sum <= most,
            "agent {} stores {sum} visits in 5 s, {most} are its bound",
            from.host
        );
        if sum > most - i64::from(self.bound) {
            self.seen.saw("the agent's own bound binds");
        }
    }

    fn maintain(&mut self, task: MaintenanceTask, from: Sender, clock: i64) -> TaskOutcome {
        match task {
            MaintenanceTask::Heartbeat { serving } => TaskOutcome::Heartbeat(
                self.database.control,
                self.database.heartbeat(from.id, serving, clock),
            ),
            MaintenanceTask::WriteBack(ids) => {
                let (written, changes) = self.database.write_back(&ids);
                self.hosts[from.host].write_backs += i64::try_from(changes.len()).expect("few");
                // No version changes, so no trigger sends it.
                for change in &changes {
                    self.publish_changes(change);
                }
                TaskOutcome::WroteBack(written)
            }
            MaintenanceTask::Canary(transport) => {
                let said = match transport {
                    Transport::Changes => self.server.publish_canary(&mut self.dice),
                    Transport::Broadcast => self.server.broadcast_canary(clock, &mut self.dice),
                };
                self.server_says(said);
                TaskOutcome::Canary
            }
            MaintenanceTask::Initialise => {
                let changes = self.database.initialise(clock);
                self.publish_all(&changes);
                TaskOutcome::Initialised(changes.len())
            }
            MaintenanceTask::Reconcile(ids) => {
                TaskOutcome::Reconciled(self.database.reconcile(&ids))
            }
            MaintenanceTask::MarkInvalid(id, why) => {
                TaskOutcome::MarkedInvalid(self.database.mark_invalid(id, why))
            }
            MaintenanceTask::CheckPublication => {
                TaskOutcome::Publication(self.database.published())
            }
        }
    }

    fn publish_all(&mut self, changes: &[Change]) {
        for change in changes {
            self.publish(change);
        }
    }

    /// Publishes it by both transports.
    fn publish(&mut self, change: &Change) {
        self.publish_changes(change);
        if self.database.broadcasts {
            let clock = self.clock();
            let said = self.server.broadcast(change, clock, &mut self.dice);
            self.server_says(said);
        }
    }

    fn publish_changes(&mut self, change: &Change) {
        self.say(|| format!("committed: {change:?}"));
        let said = self.server.publish(change, &mut self.dice);
        self.server_says(said);
    }

    fn publish_the_canary(&mut self, published: bool) {
        self.database.canary_published = published;
        self.server.canary_published = published;
    }
}

fn stores_some(outcome: &BatchOutcome) -> bool {
    matches!(outcome, BatchOutcome::Committed(rows) if !rows.is_empty())
}
