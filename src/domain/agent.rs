//! The state machine: every decision of the agent. It reads no clock, opens no socket and contains no SQL.
//!
//! The runtime passes it [`Input`]s with the time of their arrival, carries out the [`Action`]s that it polls, and wakes it
//! at [`Agent::next_deadline`]. The state has four owners, each in a file of its own: [`writes`], [`reads`], [`maintenance`]
//! and [`listening`]. The first three have a [`worker`] each, which has one job at a time and answers it by an input, so
//! nothing queues up unseen. Invariant: an owner never touches another one. What concerns another it leaves in the [`turn`]
//! as an effect, which this file passes on; it also decides who comes first.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;
use uuid::Uuid;

use super::batch::Batch;
use super::clock::{DbClock, Stepped};
use super::error_policy::ErrorKind;
use super::event::Event;
use super::ownership::{Ownership, PeerAgent};
use super::schedule::{DistributionStatus, Round, Schedule, StatusSummary};
use super::time::{DbTime, Mono};
use super::transport::ListenBy;

use self::listening::Listening;
use self::maintenance::Maintenance;
pub use self::messages::{
    Action, Answer, BatchOutcome, CountDifference, Counters, Health, Input, MaintenanceTask,
    Published, ReadCounters, ReadRequest, ReadResult, RealtimeCounters, RealtimeEvent, Refusals,
    RoundTrip, TaskOutcome, WriteCounters, WrittenBack, XidWatermark,
};
use self::reads::Reads;
use self::turn::{Effect, Turn};
use self::writes::Writes;

mod listening;
mod maintenance;
mod messages;
mod poison_search;
mod reads;
mod reconciliation;
mod turn;
mod worker;
mod writes;

/// See the module.
#[derive(Debug)]
pub struct Agent {
    id: Uuid,
    schedule: Schedule,
    clock: DbClock,
    random: Pcg32,
    writes: Writes,
    reads: Reads,
    maintenance: Maintenance,
    listening: Listening,
    outage: Outage,
    outbox: VecDeque<Action>,
    round: Round,
    stopping: bool,
}

impl Agent {
    /// An agent that knows nothing yet and stores at most so many visits a second. `id` is new at each start of a process;
    /// it also seeds the jitter of retries.
    pub fn new(id: Uuid, max_visits_per_second: u32, now: Mono) -> Self {
        Self {
            id,
            schedule: Schedule::new(Ownership::alone(id)),
            clock: DbClock::default(),
            random: Pcg32::seed_from_u64(id.as_u64_pair().0),
            writes: Writes::new(max_visits_per_second, now),
            reads: Reads::new(now),
            maintenance: Maintenance::new(now),
            listening: Listening::new(ListenBy::default(), now),
            outage: Outage::default(),
            outbox: VecDeque::new(),
            round: Round::default(),
            stopping: false,
        }
    }

    /// The agent, listening by these transports; before its first input.
    #[must_use]
    pub fn listening(mut self, by: ListenBy, now: Mono) -> Self {
        self.listening = Listening::new(by, now);
        self
    }

    /// Handles an input; the actions that follow from it are polled.
    pub fn handle(&mut self, input: Input, now: Mono) {
        if let Input::Answer(_, Some(round_trip)) = &input {
            self.measure_clock(*round_trip, now);
        }
        let mut turn = Turn::new(now, self.clock.at(now), self.random.next_u32());
        match input {
            Input::Tick => {}
            Input::Realtime(event) => self.listening.receive(&event, &self.schedule, &mut turn),
            Input::Answer(answer, _) => {
                self.answer(answer, &mut turn);
                self.pass_on(&mut turn);
                self.check_outage(now);
            }
            Input::Stop => self.stopping = true,
        }
        if !self.stopping {
            self.listening.reconnect(&mut turn);
        }
        self.pass_on(&mut turn);
        if !self.stopping {
            self.start_jobs(now);
        }
    }

    /// The next action to carry out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.pop_front()
    }

    /// When to tick next, and why.
    pub fn next_deadline(&mut self, now: Mono) -> Option<(Mono, &'static str)> {
        if self.stopping {
            return None;
        }
        let canary = self.listening.canary().map(|(at, _)| at);
        let deadlines = [
            self.writes.deadline(self.fires_at()),
            self.reads.deadline(),
            self.maintenance.deadline(canary, now),
            self.listening.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Whether no job is in hand that a stop has to wait for.
    pub fn is_idle(&self) -> bool {
        let (writer, maintenance) = (self.writes.worker(), self.maintenance.worker());
        writer.job().is_none() && maintenance.job().is_none()
    }

    /// The workers that have a job, and since when.
    pub fn in_hand(&self) -> impl Iterator<Item = (&'static str, Mono)> {
        let (writer, maintenance) = (self.writes.worker(), self.maintenance.worker());
        [
            writer.in_hand(),
            self.reads.in_hand(),
            maintenance.in_hand(),
        ]
        .into_iter()
        .flatten()
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            writes: self.writes.counters(),
            reads: self.reads.counters(),
            realtime: self.listening.counters(),
            written_back: self.maintenance.written_back(),
        }
    }

    /// Whether it does its work.
    pub fn health(&self) -> Health {
        Health {
            synced_at: self.reads.synced_at(),
            control_known: self.maintenance.control_known(),
            stored_at: self.writes.stored_at(),
            database_away_since: self.outage.since,
            live_since: self.listening.live_since(),
            down_since: self.listening.down_since(),
            caught_up: self.reads.caught_up(),
        }
    }

    /// The status of each row of this agent; none before the first round trip.
    pub fn statuses(&self, now: Mono) -> Vec<DistributionStatus> {
        self.clock
            .at(now)
            .map_or_else(Vec::new, |db| self.schedule.statuses(db).collect())
    }

    /// Continues the round over all rows; the summary once it is complete.
    pub fn status_summary(&mut self, now: Mono) -> Option<StatusSummary> {
        let db_now = self.clock.at(now)?;
        self.round.go_on(&self.schedule, db_now)
    }

    /// Rows known.
    pub fn rows(&self) -> usize {
        self.schedule.len()
    }

    /// Rows that this agent owns.
    pub fn rows_owned(&self) -> usize {
        self.schedule.ours()
    }

    /// Whether it knows the rows, and its batches succeed.
    pub fn serves(&self, now: Mono) -> bool {
        self.reads.synced_at().is_some() && !self.stopping && self.writes.serves(now)
    }

    /// Live agents, this one included.
    pub fn agents(&self) -> usize {
        self.schedule.agents()
    }

    /// Rows of this agent that run.
    pub fn running(&self) -> usize {
        self.schedule.running()
    }

    /// Whether the control row pauses everything.
    pub fn paused(&self) -> bool {
        self.schedule.control().paused
    }

    /// The batch that is being stored.
    pub fn storing(&self) -> Option<&Batch> {
        self.writes.worker().job()
    }

    /// The database's time, as estimated.
    pub fn db_time(&self, now: Mono) -> Option<DbTime> {
        self.clock.at(now)
    }

    fn answer(&mut self, answer: Answer, turn: &mut Turn) {
        match answer {
            Answer::Stored(outcome) => self.writes.answer(outcome, &mut self.schedule, turn),
            Answer::Read(answer) => self.reads.answer(answer, &mut self.schedule, turn),
            Answer::Maintained(answer) => {
                if let Some(task) = self.maintenance.worker().job() {
                    self.listening.task_answered(task, &answer, turn);
                }
                self.maintenance.answer(answer, &mut self.schedule, turn);
                self.maintenance.set_unheard(self.listening.is_unheard());
            }
        }
    }

    /// Passes on what one owner left for the others.
    fn pass_on(&mut self, turn: &mut Turn) {
        while let Some(effect) = turn.next_effect() {
            let now = turn.now;
            match effect {
                Effect::Act(action) => self.outbox.push_back(action),
                Effect::Failed(kind, event) => {
                    let is_news = !kind.policy().away || self.outage.begin(kind, now);
                    self.outbox
                        .extend(event.filter(|_| is_news).map(Action::Emit));
                }
                Effect::Subscribed => self.reads.subscribed(&self.schedule, now),
                Effect::Unsubscribed => self.reads.unsubscribed(now),
                Effect::Sync => self.reads.request_sync(&self.schedule, now),
                Effect::Read(ids, by) => self.reads.want(ids, by),
                Effect::Applied(ids) => {
                    for id in &ids {
                        self.writes.was_read(*id, &self.schedule, turn.db_now);
                    }
                    self.inspect(ids, turn);
                }
                Effect::Deleted(id) => {
                    self.writes.deleted(id);
                    self.maintenance.forget(id, now);
                }
                Effect::Stored(ids) => {
                    for id in &ids {
                        self.maintenance.stored(*id);
                    }
                    self.inspect(ids, turn);
                }
                Effect::Inspect(ids) => self.inspect(ids, turn),
                Effect::Missed(ids) => self.listening.missed(&ids, now),
                Effect::Synced { first } => self.maintenance.synced(first, now),
                Effect::Task(task) => self.maintenance.request(task),
                Effect::Peers(peers) => self.share(&peers, turn),
            }
        }
    }

    fn inspect(&mut self, ids: impl IntoIterator<Item = Uuid>, turn: &mut Turn) {
        for id in ids {
            self.maintenance.inspect(id, &self.schedule, turn);
        }
    }

    /// Divides the rows among the live agents.
    fn share(&mut self, peers: &[PeerAgent], turn: &mut Turn) {
        let Some(db_now) = turn.db_now else {
            return;
        };
        let ownership = Ownership::beside(self.id, self.serves(turn.now), peers);
        let agents = ownership.agents();
        if agents != self.schedule.agents() {
            turn.emit(Event::AGENTS_CHANGED.count(agents));
        }
        let sequence = self.schedule.next_sequence();
        let change = self.schedule.set_share(ownership, sequence, db_now);
        for id in change.lost {
            self.writes.forget(id);
            self.maintenance.forget(id, turn.now);
        }
        let budget = self.schedule.control().write_back_budget_micro;
        self.maintenance
            .shared(agents, &change.gained, budget, turn.now);
        self.reads.want(change.gained, turn.now);
    }

    /// Starts a job of each worker that is free and has something to do.
    fn start_jobs(&mut self, now: Mono) {
        let db_now = self.clock.at(now);
        let fires = self.fires_at().is_some_and(|at| at <= now);
        if let Some(db_now) = db_now.filter(|_| fires)
            && let Some(batch) = self.writes.next_job(&mut self.schedule, db_now, now)
        {
            self.outbox.push_back(Action::Store(batch));
        }
        if let Some(request) = self.reads.next_job(&mut self.schedule, now) {
            self.outbox.push_back(Action::Read(request));
        }
        let canary = self.listening.canary().filter(|(at, _)| *at <= now);
        let canary = canary.map(|(_, transport)| transport);
        let serving = self.serves(now);
        let task = (self.maintenance).next_job(&self.schedule, serving, canary, db_now, now);
        if let Some(task) = task {
            self.listening.task_started(&task, now);
            self.outbox.push_back(Action::Maintain(task));
        }
    }

    /// When a row fires; never before the rows and the control row are known.
    fn fires_at(&self) -> Option<Mono> {
        let at = self
            .schedule
            .next_deadline()
            .filter(|_| self.health().has_begun())?;
        self.clock.mono_of(at)
    }

    fn measure_clock(&mut self, round_trip: RoundTrip, now: Mono) {
        let RoundTrip { sent, db, received } = round_trip;
        if self.clock.sample(sent, db, received) == Stepped::No {
            return;
        }
        self.outbox.push_back(Action::Emit(Event::CLOCK_STEPPED));
        if let Some(db_now) = self.clock.at(now) {
            self.schedule.clock_stepped(db_now);
        }
    }

    /// The database is available again once no worker that has something to do is without an answer: with a full disk it
    /// can still be read.
    fn check_outage(&mut self, now: Mono) {
        let to_store = self.storing().is_some() || self.fires_at().is_some_and(|at| at <= now);
        let cannot_store = self.writes.worker().is_away() && to_store;
        if cannot_store || self.reads.is_away() || self.maintenance.worker().is_away() {
            return;
        }
        if let Some(lasted) = self.outage.end(now) {
            let event = Event::DATABASE_AVAILABLE.after(lasted);
            self.outbox.push_back(Action::Emit(event));
        }
    }
}

/// The database is unavailable: since when, and with which errors that was reported.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Mono>,
    reported: BTreeSet<ErrorKind>,
}

impl Outage {
    /// Whether this error is the first of its kind in the outage.
    fn begin(&mut self, kind: ErrorKind, now: Mono) -> bool {
        self.since = self.since.or(Some(now));
        self.reported.insert(kind)
    }

    /// How long it lasted, if there was one.
    fn end(&mut self, now: Mono) -> Option<Duration> {
        self.reported.clear();
        self.since.take().map(|since| now.since(since))
    }
}

#[cfg(test)]
mod tests;
