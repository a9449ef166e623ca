//! A deterministic simulation: agents against a model database and a model Realtime, under every fault that the contract
//! names. After every step the promises are checked; after the faults everything must come right by itself.
//!
//! `VISIT_PACER_SIM_SEEDS=N` runs more seeds, `VISIT_PACER_SIM_SEED=S` runs one and shows what happened.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that panics has failed, and what it prints is shown then"
)]

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use self::database::{Change, Database, Pending, Row};
use self::dice::Dice;
use self::feed::Feed;
use visit_pacer::domain::agent::{
    Action, Agent, Chore, Input, Kept, News, Published, Stored, Trip, What,
};
use visit_pacer::domain::batch::Batch;
use visit_pacer::domain::proof::Verdict;
use visit_pacer::domain::time::{DbTime, Mono, SECOND_US};
use visit_pacer::domain::timetable::{Control, Status};

mod chaos;
mod database;
mod dice;
mod feed;

const SEEDS: u64 = 300;
const MS: i64 = 1_000;
/// How long faults go on.
const STORM_US: i64 = 40 * SECOND_US;
/// How long everything may then take to come right: two rejoins that keep a minute's distance, and a retry after a minute.
const CALM_US: i64 = 200 * SECOND_US;
/// The end of the calm, in which every batch must be on time.
const ON_TIME_US: i64 = 30 * SECOND_US;
/// How long into the calm what was lost before may still be missed: a row that a TRUNCATE took is found missing by the next
/// sync, and cannot be told from one whose DELETE was not heard of; and rejoins keep a minute's distance.
const AFTERMATH_US: i64 = 105 * SECOND_US;
/// Lines of the trail that a failure shows.
const TRAIL: usize = 120;
/// Ticks at one moment that lead to nothing.
const IDLE_TICKS: u32 = 20;

/// A statement on its way to the database.
#[derive(Clone, Debug)]
enum Job {
    Store(Batch),
    Read(What),
    Keep(Chore),
}

/// What becomes of a statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Answered,
    /// The connection is lost before it is carried out.
    LostBefore,
    /// … after.
    LostAfter,
    /// The agent is told that the connection is lost; a while later the statement is carried out all the same.
    Zombie,
}

#[derive(Clone, Debug)]
enum Event {
    Tick(usize),
    Arrives {
        job: Job,
        from: Sender,
        fate: Fate,
    },
    Answer {
        input: Answer,
        to: Sender,
    },
    Hears {
        news: News,
        host: usize,
        channel: u32,
    },
    Joins {
        host: usize,
        channel: u32,
        new_socket: bool,
    },
    Starts(usize),
    Fault,
    EndOfTransaction {
        id: Uuid,
        commit: bool,
    },
    ReleasePartner(Uuid),
    ReleaseControl,
    Resume,
}

/// Which life of which agent, and when it sent.
#[derive(Clone, Copy, Debug)]
struct Sender {
    host: usize,
    life: u32,
    at: i64,
}

#[derive(Clone, Debug)]
enum Answer {
    Stored(Stored, Option<DbTime>),
    Read(Result<(Vec<visit_pacer::domain::timetable::RowRead>, DbTime), String>),
    Kept(Result<(Kept, DbTime), String>),
}

/// A machine that an agent runs on, again and again.
struct Host {
    /// New at each start.
    id: Uuid,
    agent: Option<Agent>,
    life: u32,
    born: i64,
    tick_at: Option<i64>,
    idle_ticks: u32,
    feed: Feed,
    /// Events that its write-backs have caused since the calm began.
    write_backs: i64,
}

impl Host {
    fn mono(&self, now: i64) -> Mono {
        Mono::from_micros(now - self.born)
    }
}

struct World {
    now: i64,
    events: u64,
    queue: BTreeMap<(i64, u64), Event>,
    dice: Dice,
    database: Database,
    database_away_until: i64,
    hosts: Vec<Host>,
    storm: bool,
    trail: Trail,
}

/// What happened last, shown when a check fails.
struct Trail {
    seed: u64,
    lines: VecDeque<String>,
    aloud: bool,
}

impl Trail {
    fn say(&mut self, now: i64, line: &str) {
        let line = format!(
            "{:>10.6} {line}",
            std::time::Duration::from_micros(now.unsigned_abs()).as_secs_f64()
        );
        if self.aloud {
            eprintln!("{line}");
        }
        if self.lines.len() == TRAIL {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.lines {
                eprintln!("{line}");
            }
            eprintln!(
                "the simulation fails with VISIT_PACER_SIM_SEED={}",
                self.seed
            );
        }
    }
}

impl World {
    fn new(seed: u64, aloud: bool) -> Self {
        let mut dice = Dice::new(seed);
        let mut database = Database {
            clock_offset: 1_800_000_000 * SECOND_US + dice.between(0, SECOND_US),
            ..Database::default()
        };
        if dice.percent(20) {
            database.control.give_up_after_us = dice.between(1, 20) * SECOND_US;
        }
        let agents = dice.between(1, 2);
        let host = |_| Host {
            id: Uuid::nil(),
            agent: None,
            life: 0,
            born: 0,
            tick_at: None,
            idle_ticks: 0,
            feed: Feed::default(),
            write_backs: 0,
        };
        let mut world = Self {
            now: 0,
            events: 0,
            queue: BTreeMap::new(),
            dice,
            database,
            database_away_until: 0,
            hosts: (0..agents).map(host).collect(),
            storm: true,
            trail: Trail {
                seed,
                lines: VecDeque::new(),
                aloud,
            },
        };
        for host in 0..world.hosts.len() {
            world.after(0, Event::Starts(host));
        }
        for _ in 0..world.dice.between(1, 6) {
            world.insert_row();
        }
        world.after(0, Event::Fault);
        world
    }

    fn after(&mut self, delay: i64, event: Event) {
        self.events += 1;
        self.queue
            .insert((self.now + delay.max(0), self.events), event);
    }

    fn run_until(&mut self, end: i64) {
        while let Some(entry) = self
            .queue
            .first_entry()
            .filter(|entry| entry.key().0 <= end)
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
            self.database.check();
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(host) => {
                if self.hosts[host].tick_at == Some(self.now) {
                    self.hosts[host].tick_at = None;
                    self.feed_agent(host, Input::Tick);
                }
            }
            Event::Arrives { job, from, fate } => self.arrives(job, from, fate),
            Event::Answer { input, to } => self.answers(input, to),
            Event::Hears {
                news,
                host,
                channel,
            } => {
                let feed = self.hosts[host].feed;
                if feed.channel == channel && feed.delivers() {
                    self.feed_agent(host, Input::News(news));
                }
            }
            Event::Joins {
                host,
                channel,
                new_socket,
            } => {
                if self.hosts[host].feed.channel == channel {
                    self.hosts[host].feed.join(new_socket);
                    self.feed_agent(host, Input::News(News::Live));
                }
            }
            Event::Starts(host) => self.starts(host),
            Event::Fault => {
                let pause = if self.storm {
                    self.fault();
                    self.dice.between(20, 900) * MS
                } else {
                    self.edit_calmly();
                    self.dice.between(1_000, 9_000) * MS
                };
                self.after(pause, Event::Fault);
            }
            Event::EndOfTransaction { id, commit } => {
                if let Some(change) = self.database.end(id, commit) {
                    self.publish(change);
                }
            }
            Event::ReleasePartner(id) => {
                self.database.held_partners.remove(&id);
            }
            Event::ReleaseControl => self.database.control_held = false,
            Event::Resume => self.database.control.paused = false,
        }
    }

    fn starts(&mut self, host: usize) {
        let seed = u64::try_from(self.dice.between(0, i64::MAX - 1)).expect("positive");
        let place = &mut self.hosts[host];
        if place.agent.is_some() {
            return;
        }
        place.life += 1;
        place.born = self.now;
        place.id = Uuid::from_u64_pair(seed, 0);
        place.agent = Some(Agent::new(place.id, 2_000, Mono::from_micros(0)));
        place.feed.down();
        let channel = place.feed.channel;
        self.trail.say(self.now, &format!("agent {host} starts"));
        let join_in = self.dice.between(5, 2_000) * MS;
        let join = Event::Joins {
            host,
            channel,
            new_socket: true,
        };
        self.after(join_in, join);
        self.feed_agent(host, Input::Tick);
    }

    /// Gives an agent an input, carries its actions to the lanes, and sets its alarm.
    fn feed_agent(&mut self, host: usize, input: Input) {
        let now = self.hosts[host].mono(self.now);
        let Some(agent) = &mut self.hosts[host].agent else {
            return;
        };
        let tick = input == Input::Tick;
        agent.handle(input, now);
        let actions: Vec<Action> = std::iter::from_fn(|| agent.poll_action()).collect();
        let deadline = agent.next_deadline(now);
        let place = &mut self.hosts[host];
        place.idle_ticks = if tick && actions.is_empty() {
            place.idle_ticks + 1
        } else {
            0
        };
        if let Some((at, why)) = deadline {
            if at > now {
                place.idle_ticks = 0;
            }
            assert!(
                place.idle_ticks < IDLE_TICKS,
                "agent {host} spins for: {why}"
            );
            let at = place.born + at.as_micros().max(now.as_micros());
            if place
                .tick_at
                .is_none_or(|before| at < before || before < self.now)
            {
                place.tick_at = Some(at);
                self.after(at - self.now, Event::Tick(host));
            }
        }
        for action in actions {
            self.carry_out(host, action);
        }
    }

    fn carry_out(&mut self, host: usize, action: Action) {
        let job = match action {
            Action::Store(batch) => Job::Store(batch),
            Action::Read(what) => Job::Read(what),
            Action::Keep(chore) => Job::Keep(chore),
            Action::Revive(verdict) => {
                self.trail.say(
                    self.now,
                    &format!("agent {host} finds its channel silent: {verdict:?}"),
                );
                let heard = self.hosts[host].feed.delivers();
                assert!(
                    !heard || self.now < STORM_US + AFTERMATH_US,
                    "agent {host} finds a channel silent on which it hears everything"
                );
                self.rejoin(host, verdict == Verdict::Reopen);
                return;
            }
            Action::Tell(notice) => {
                self.trail
                    .say(self.now, &format!("agent {host}: {notice:?}"));
                return;
            }
            Action::Follow(_) => return,
        };
        let from = Sender {
            host,
            life: self.hosts[host].life,
            at: self.now,
        };
        let fate = self.fate();
        let delay = self.latency();
        self.after(delay, Event::Arrives { job, from, fate });
    }

    fn rejoin(&mut self, host: usize, new_socket: bool) {
        self.hosts[host].feed.down();
        let channel = self.hosts[host].feed.channel;
        self.feed_agent(host, Input::News(News::Down));
        let join_in = self.dice.between(300, 2_000) * MS;
        self.after(
            join_in,
            Event::Joins {
                host,
                channel,
                new_socket,
            },
        );
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
            0..=2 => Fate::LostBefore,
            3..=5 => Fate::LostAfter,
            6..=7 => Fate::Zombie,
            _ => Fate::Answered,
        }
    }

    fn arrives(&mut self, job: Job, from: Sender, fate: Fate) {
        let lost = |job: &Job, certain: bool| match job {
            Job::Store(_) if certain => Answer::Stored(Stored::NotNow("refused".to_owned()), None),
            Job::Store(_) => Answer::Stored(Stored::Unknown("reset".to_owned()), None),
            Job::Read(_) => Answer::Read(Err("reset".to_owned())),
            Job::Keep(_) => Answer::Kept(Err("reset".to_owned())),
        };
        let delay = self.latency();
        let to = from;
        if self.now < self.database_away_until {
            let certain = self.dice.percent(50);
            let input = lost(&job, certain);
            self.after(delay, Event::Answer { input, to });
            return;
        }
        match fate {
            Fate::Answered => {
                let input = self.carried_out(job, from.host);
                self.after(delay, Event::Answer { input, to });
            }
            Fate::LostBefore => {
                let input = lost(&job, false);
                self.after(delay, Event::Answer { input, to });
            }
            Fate::LostAfter => {
                let input = lost(&job, false);
                self.carried_out(job, from.host);
                self.after(delay, Event::Answer { input, to });
            }
            Fate::Zombie => {
                let input = lost(&job, false);
                self.after(delay, Event::Answer { input, to });
                let late = self.dice.between(1, 3_000) * MS;
                let fate = Fate::LostAfter;
                // Its second answer finds nobody who waits for it.
                let from = Sender { life: 0, ..from };
                self.after(late, Event::Arrives { job, from, fate });
            }
        }
    }

    fn carried_out(&mut self, job: Job, host: usize) -> Answer {
        let clock = self.database.clock(self.now);
        match job {
            Job::Store(batch) => {
                let stored = self.database.store(&batch, self.now);
                let line = format!(
                    "agent {host} stores {} visits of {} rows at {}: {}",
                    batch.visits(),
                    batch.rows.len(),
                    batch.rows[0].at.as_micros(),
                    outcome(&stored)
                );
                self.trail.say(self.now, &line);
                let told = matches!(&stored, Stored::Rows(rows) if !rows.is_empty());
                Answer::Stored(stored, told.then_some(clock))
            }
            Job::Read(what) => {
                let ids = match &what {
                    What::All => None,
                    What::Rows(ids) => Some(ids.as_slice()),
                };
                Answer::Read(Ok((self.database.read(ids), clock)))
            }
            Job::Keep(chore) => Answer::Kept(Ok((self.kept(chore, host, clock), clock))),
        }
    }

    fn kept(&mut self, chore: Chore, host: usize, clock: DbTime) -> Kept {
        match chore {
            Chore::Beat { serving } => {
                let me = self.hosts[host].id;
                Kept::Beat(
                    self.database.control,
                    self.database.beat(me, serving, clock),
                )
            }
            Chore::WriteBack(ids) => {
                let (written, changes) = self.database.write_back(&ids);
                self.hosts[host].write_backs += i64::try_from(changes.len()).expect("few");
                for change in changes {
                    self.publish(change);
                }
                Kept::WroteBack(written)
            }
            Chore::Canary => {
                for host in 0..self.hosts.len() {
                    self.deliver(host, News::Canary);
                }
                Kept::Canary
            }
            Chore::Initialise => {
                let changes = self.database.initialise(clock);
                let rows = u64::try_from(changes.len()).expect("few");
                for change in changes {
                    self.publish(change);
                }
                Kept::Initialised(rows)
            }
            Chore::Reconcile(_) => Kept::Reconciled(Vec::new()),
            Chore::MarkInvalid(id, why) => {
                self.database.mark_invalid(id, why);
                Kept::MarkedInvalid(true)
            }
            Chore::Published => Kept::Published(Published {
                distributions: true,
                canary: true,
                visits: false,
            }),
        }
    }

    fn answers(&mut self, input: Answer, to: Sender) {
        let host = &self.hosts[to.host];
        if host.life != to.life {
            return;
        }
        let (sent, received) = (host.mono(to.at), host.mono(self.now));
        let trip = |db| Trip { sent, db, received };
        let input = match input {
            Answer::Stored(stored, db) => Input::Stored(stored, db.map(trip)),
            Answer::Read(read) => Input::Read(read.map(|(rows, db)| (rows, trip(db)))),
            Answer::Kept(kept) => Input::Kept(kept.map(|(kept, db)| (kept, trip(db)))),
        };
        self.feed_agent(to.host, input);
    }

    fn publish(&mut self, change: Change) {
        self.trail.say(self.now, &format!("committed: {change:?}"));
        for host in 0..self.hosts.len() {
            let version = change.version.filter(|_| !self.dice.percent(20));
            self.deliver(host, News::Row(change.id, version));
            if self.storm && self.dice.percent(5) {
                self.deliver(host, News::Row(change.id, version));
            }
        }
    }

    fn deliver(&mut self, host: usize, news: News) {
        let dropped = self.storm && self.dice.percent(3);
        if self.hosts[host].feed.delivers() && !dropped {
            let channel = self.hosts[host].feed.channel;
            let delay = self.dice.between(1, 300) * MS;
            self.after(
                delay,
                Event::Hears {
                    news,
                    host,
                    channel,
                },
            );
        }
    }

    /// What was due of a row at the fire before last, and is neither stored nor given up.
    fn owes(&self, row: &Row) -> i64 {
        let clock = self.database.clock(self.now);
        let give_up_after = self.database.control.give_up_after_us;
        let paced = row
            .parsed()
            .filter(|row| row.active && !row.given_up(give_up_after, clock));
        let due = paced.map_or(0, |row| {
            row.curve.due(clock.plus_micros(-SECOND_US - 100 * MS))
        });
        (due - self.database.progress[&row.id].distributed).max(0)
    }

    /// After the calm: each row is on its curve, each agent knows each row, and Realtime is live and known to be.
    fn check_that_all_is_well(&self) {
        for row in self.database.rows.values() {
            assert!(row.anchored.is_some(), "{} was never anchored", row.id);
            let Some(parsed) = row.parsed() else { continue };
            let distributed = self.database.progress[&row.id].distributed;
            assert!(self.owes(row) == 0, "{} owes {}", row.id, self.owes(row));
            let rests = !parsed.active || distributed >= row.total;
            assert!(
                !rests || row.written == distributed,
                "{} says {} and has {distributed}",
                row.id,
                row.written
            );
        }
        let mut owned = 0;
        for (name, host) in self.hosts.iter().enumerate() {
            let agent = host.agent.as_ref().expect("running");
            let health = agent.health();
            assert!(
                health.caught_up && host.feed.delivers(),
                "agent {name}: {:?} {health:?}",
                host.feed
            );
            assert_eq!(health.database_away_since, None);
            // 0.2 a second after a burst of 20, and rows that are finished.
            let seconds = CALM_US / SECOND_US;
            let finished = i64::try_from(self.database.rows.len()).expect("few");
            assert!(
                host.write_backs <= 20 + seconds / 5 + finished,
                "{}",
                host.write_backs
            );
            assert_eq!(agent.rows(), self.database.rows.len(), "agent {name}");
            let looks = agent.look_at_all(host.mono(self.now));
            owned += looks.len();
            for look in looks {
                let row = &self.database.rows[&look.id];
                match row.parsed() {
                    Some(parsed) => {
                        assert_eq!(look.total, parsed.curve.total);
                        let tried = self.owes(row) > 0;
                        assert!(!tried || look.status != Status::Invalid, "{look:?}");
                        assert_ne!(look.status, Status::Behind, "{look:?}");
                    }
                    None => assert_eq!(look.status, Status::Invalid),
                }
            }
        }
        assert_eq!(owned, self.database.rows.len(), "each row has one agent");
    }
}

fn outcome(stored: &Stored) -> String {
    match stored {
        Stored::Rows(rows) => format!("{} rows stored", rows.len()),
        Stored::Unknown(why) | Stored::Failed(why) | Stored::NotNow(why) => why.clone(),
    }
}

/// One run; says how many visits were stored.
fn simulate(seed: u64, aloud: bool) -> i64 {
    let mut world = World::new(seed, aloud);
    world.run_until(STORM_US);
    world.calm_down();
    let back = world.database.clock(world.now);
    world.run_until(STORM_US + CALM_US - ON_TIME_US);
    assert!(world.database.clock(world.now) > back);
    world.database.on_time_since = Some(world.now);
    world.run_until(STORM_US + CALM_US);
    world.check_that_all_is_well();
    world.database.visits
}

#[test]
fn whatever_happens_every_due_visit_is_stored_once_and_none_is_stored_early_or_past_a_pause() {
    let setting = |name: &str| {
        std::env::vars()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    let number =
        |name: &str| setting(name).map(|text| text.parse::<u64>().expect("a whole number"));
    if let Some(seed) = number("VISIT_PACER_SIM_SEED") {
        simulate(seed, true);
        return;
    }
    let seeds = number("VISIT_PACER_SIM_SEEDS").unwrap_or(SEEDS);
    let visits: i64 = (0..seeds).map(|seed| simulate(seed, false)).sum();
    assert!(
        visits > i64::try_from(seeds).expect("few"),
        "the storms left nothing to store"
    );
}
