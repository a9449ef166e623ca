//! The main loop: it tells the agent what happened, and carries out what the agent asks for. It decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::alarm::Alarm;
use super::clock::Clock;
use super::log_limiter::LogLimiter;
use super::realtime_state::{self, RealtimeState, reconnect_command};
use super::snapshot::Snapshot;
use super::summary::Summary;
use super::watchdog::Watchdog;
use super::workers::{self, Answers};
use crate::domain::agent::{
    Action, Agent, Answer, BatchOutcome, Input, MaintenanceTask, ReadRequest, RealtimeEvent,
    RoundTrip,
};
use crate::domain::batch::Batch;
use crate::domain::error_policy::ErrorKind;
use crate::domain::event::Event;
use crate::domain::schedule::StatusSummary;
use crate::domain::time::Mono;
use crate::domain::transport::ListenBy;
use crate::observe::Metrics;
use crate::postgres::maintenance::Identity;
use crate::postgres::reconnect::{Database, ReconnectingConnection};
use crate::realtime::{FeedCommand, FeedConfig, FeedEvent, feed};

/// Answers and events that may wait for the loop.
const WAITING: usize = 256;
/// How often the snapshot is taken.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);
/// How long a stop waits for the jobs in hand, and then again for all tasks.
const STOP_WITHIN: Duration = Duration::from_secs(4);

/// What an agent needs.
pub struct Config {
    /// The database.
    pub database: Database,
    /// Realtime, and what to follow there.
    pub feed: FeedConfig,
    /// Which transports to use.
    pub listen_by: ListenBy,
    /// The limit of the whole agent.
    pub max_visits_per_second: u32,
    /// Who it is.
    pub identity: Identity,
    /// The monotonic clock.
    pub clock: Clock,
}

/// What others see of it.
pub struct Outputs {
    /// The state.
    pub snapshot: watch::Sender<Snapshot>,
    /// The measurements.
    pub metrics: Metrics,
    /// The events.
    pub log: LogLimiter,
}

/// Runs the agent until `shutdown` is cancelled; fails only when one of its own tasks does.
pub async fn run(
    config: Config,
    outputs: Outputs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut driver = Driver::new(&config, outputs);
    let stopped = driver.follow(&shutdown).await;
    driver.end().await;
    stopped
}

struct Driver {
    agent: Agent,
    clock: Clock,
    outputs: Outputs,
    inputs: mpsc::Receiver<Input>,
    events: mpsc::Receiver<FeedEvent>,
    jobs: Option<Jobs>,
    commands: mpsc::Sender<FeedCommand>,
    feed_shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    realtime: RealtimeState,
    watchdog: Watchdog,
    next_snapshot: Mono,
    error_kinds: BTreeMap<ErrorKind, u64>,
    summary: Summary,
    status_summary: Arc<StatusSummary>,
}

/// The job queue of each worker. A worker has one job at a time, so there is always room.
struct Jobs {
    batches: mpsc::Sender<Batch>,
    reads: mpsc::Sender<ReadRequest>,
    maintenance: mpsc::Sender<MaintenanceTask>,
}

impl Driver {
    fn new(config: &Config, outputs: Outputs) -> Self {
        let (answers, inputs) = mpsc::channel(WAITING);
        let (events_in, events) = mpsc::channel(WAITING);
        let (commands, commands_out) = mpsc::channel(WAITING);
        let feed_shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let answers = Answers {
            inputs: answers,
            clock: config.clock,
        };
        let jobs = start_workers(&mut tasks, config, &answers, outputs.snapshot.subscribe());
        let feed = feed::run(
            config.feed.clone(),
            commands_out,
            events_in,
            feed_shutdown.clone(),
        );
        tasks.spawn(async move {
            feed.await;
            "feed"
        });
        let now = config.clock.now();
        let agent = Agent::new(config.identity.id, config.max_visits_per_second, now);
        Self {
            agent: agent.listening(config.listen_by, now),
            clock: config.clock,
            outputs,
            inputs,
            events,
            jobs: Some(jobs),
            commands,
            feed_shutdown,
            tasks,
            realtime: RealtimeState::new(config.listen_by),
            watchdog: Watchdog::new(now),
            next_snapshot: now,
            error_kinds: BTreeMap::new(),
            summary: Summary::new(now),
            status_summary: Arc::default(),
        }
    }

    async fn follow(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut stop_by = None;
        let alarm = Alarm::new();
        loop {
            self.carry_out();
            let now = self.clock.now();
            self.publish(now);
            if let Some(by) = stop_by
                && (self.agent.is_idle() || now >= by)
            {
                return Ok(());
            }
            let deadline = self.agent.next_deadline(now);
            let tick = deadline.map_or(self.next_snapshot, |(at, _)| at.min(self.next_snapshot));
            let input = tokio::select! {
                biased;
                input = self.inputs.recv() => input.context("all workers have ended")?,
                () = shutdown.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(self.clock.now().plus(STOP_WITHIN));
                    Input::Stop
                }
                Some(ended) = self.tasks.join_next() => {
                    let name = ended.context("a task of the agent panicked")?;
                    anyhow::bail!("the {name} ended by itself");
                }
                Some(event) = self.events.recv() => match self.receive(&event) {
                    Some(event) => Input::Realtime(event),
                    None => continue,
                },
                () = alarm.at(self.clock.instant(tick)) => Input::Tick,
            };
            self.handle(input);
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        if let Input::Answer(answer, round_trip) = &input {
            self.measure(answer, *round_trip, now);
        }
        let had_begun = self.agent.health().has_begun();
        self.agent.handle(input, now);
        if !had_begun && self.agent.health().has_begun() {
            self.next_snapshot = now; // somebody waits for it to be ready
        }
    }

    /// Counts what failed, and measures a batch that was stored.
    fn measure(&mut self, answer: &Answer, round_trip: Option<RoundTrip>, now: Mono) {
        if let Some(failure) = answer.failure() {
            self.count(failure.kind);
        }
        let (Answer::Stored(BatchOutcome::Committed(ids)), Some(round_trip)) = (answer, round_trip)
        else {
            return;
        };
        if let (Some(batch), Some(db_now)) = (self.agent.storing(), self.agent.db_time(now)) {
            let stored = batch.rows.iter().filter(|row| ids.contains(&row.id));
            let delay = stored.map(|row| db_now.micros_since(row.at)).max();
            let took = round_trip.received.since(round_trip.sent);
            self.outputs.metrics.stored(delay.unwrap_or(0), took);
        }
    }

    fn count(&mut self, kind: ErrorKind) {
        *self.error_kinds.entry(kind).or_insert(0) += 1;
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            let Some(jobs) = &self.jobs else { return };
            let has_room = match action {
                Action::Store(batch) => jobs.batches.try_send(batch).is_ok(),
                Action::Read(request) => jobs.reads.try_send(request).is_ok(),
                Action::Maintain(task) => jobs.maintenance.try_send(task).is_ok(),
                Action::Reconnect(transport, reconnect) => {
                    self.command(reconnect_command(transport, reconnect))
                }
                Action::Follow(following) => {
                    let commands = self.realtime.follow(following);
                    commands.into_iter().all(|command| self.command(command))
                }
                Action::Emit(event) => {
                    self.emit(event);
                    true
                }
            };
            debug_assert!(
                has_room,
                "a worker has one job at a time, and the feed few commands"
            );
        }
    }

    fn command(&self, command: FeedCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    fn emit(&mut self, event: Event) {
        self.outputs.metrics.event(&event);
        let now = self.clock.now();
        self.outputs.log.log(event, self.agent.db_time(now), now);
    }

    /// Takes an event of the feed in; what it means to the agent.
    fn receive(&mut self, event: &FeedEvent) -> Option<RealtimeEvent> {
        let now = self.clock.now();
        if let FeedEvent::Down(down) = event
            && down.failure.kind != ErrorKind::Asked
        {
            self.count(down.failure.kind);
        }
        if let Some(report) = self.realtime.take(event, now) {
            self.emit(report);
        }
        let received = realtime_state::received(event, self.agent.db_time(now));
        self.outputs.log.recent().received(received);
        realtime_state::agent_event(event)
    }

    /// Publishes the state once a second, and sums up once a minute.
    fn publish(&mut self, now: Mono) {
        if now < self.next_snapshot {
            return;
        }
        self.next_snapshot = now.plus(SNAPSHOT_EVERY);
        let deadline = self.agent.next_deadline(now);
        if let Some(stuck) = self.watchdog.check(self.agent.in_hand(), deadline, now) {
            self.emit(Event::STUCK.because(stuck.to_string()));
        }
        if let Some(status_summary) = self.agent.status_summary(now) {
            self.status_summary = Arc::new(status_summary);
        }
        let snapshot = Snapshot {
            at: Some(now),
            db_time: self.agent.db_time(now),
            progressed_at: Some(self.watchdog.progressed_at()),
            counters: self.agent.counters(),
            health: self.agent.health(),
            paused: self.agent.paused(),
            realtime: self.realtime.text(),
            transports: self.realtime.transports().clone(),
            error_kinds: self.error_kinds.clone(),
            agents: self.agent.agents(),
            rows: self.agent.rows(),
            rows_owned: self.agent.rows_owned(),
            status_summary: Arc::clone(&self.status_summary),
        };
        self.outputs.log.end_minute(now);
        self.summary.log(&snapshot, &self.outputs.metrics, now);
        // Nobody has to watch it.
        let _watched = self.outputs.snapshot.send(snapshot).is_ok();
    }

    /// Closes channel and connections: workers end when their job queues are dropped.
    async fn end(&mut self) {
        self.feed_shutdown.cancel();
        self.jobs = None;
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, ending).await.is_err() {
            self.emit(Event::SHUTDOWN_TIMED_OUT);
            self.tasks.shutdown().await;
        }
    }
}

/// Starts the three workers, each with a connection of its own.
fn start_workers(
    tasks: &mut JoinSet<&'static str>,
    config: &Config,
    answers: &Answers,
    snapshot: watch::Receiver<Snapshot>,
) -> Jobs {
    let (batches, batches_out) = mpsc::channel(1);
    let (reads, reads_out) = mpsc::channel(1);
    let (maintenance, tasks_out) = mpsc::channel(1);
    let connection = || ReconnectingConnection::new(config.database.clone());
    let writer = workers::writer(connection(), batches_out, answers.clone());
    let reader = workers::reader(connection(), reads_out, answers.clone());
    let identity = config.identity.clone();
    let maintainer =
        workers::maintenance(connection(), tasks_out, answers.clone(), identity, snapshot);
    tasks.spawn(async move {
        writer.await;
        "writer"
    });
    tasks.spawn(async move {
        reader.await;
        "reader"
    });
    tasks.spawn(async move {
        maintainer.await;
        "maintenance worker"
    });
    Jobs {
        batches,
        reads,
        maintenance,
    }
}
