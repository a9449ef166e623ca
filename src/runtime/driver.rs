//! The one loop. Its branches only say what happened; the core decides; what it asks for goes to the lanes and the feed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::alarm::Alarm;
use super::clock::Clock;
use super::log_messages::{Said, Voice, said};
use super::progress::{Lane, Progress};
use super::snapshot::{Snapshot, WayState};
use super::summary::Summary;
use super::workers::{self, Answers};
use crate::domain::agent::{
    Action, Agent, Input, MaintenanceTask, Notice, ReadRequest, RealtimeEvent, Stored,
};
use crate::domain::batch::Batch;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::ErrorKind;
use crate::domain::schedule::StatusSummary;
use crate::domain::time::Mono;
use crate::domain::transport::{Following, ListenBy, PerTransport, Transport};
use crate::observe::Metrics;
use crate::observe::recent::ReceivedEvent;
use crate::postgres::maintenance::Identity;
use crate::postgres::reconnect::{Database, ReconnectingConnection};
use crate::realtime::{Broadcast, Change, Down, FeedCommand, FeedConfig, FeedEvent, Table, feed};

/// The tables that are followed; the canary only where it is published.
pub const DISTRIBUTIONS: &str = "visit_distribution";
/// See [`DISTRIBUTIONS`].
pub const CANARY: &str = "visit_pacer_canary";

/// Answers and events that may wait for the loop.
const WAITING: usize = 256;
/// How often the snapshot is taken anew.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);
/// What a stop may take until the batch in hand is answered, and again until everybody has said goodbye.
const STOP_WITHIN: Duration = Duration::from_secs(4);

/// What an agent needs.
pub struct Config {
    /// Where the table is.
    pub database: Database,
    /// Where Realtime is, and what to follow there.
    pub feed: FeedConfig,
    /// Which ways to listen.
    pub listen_by: ListenBy,
    /// The bound of the whole agent.
    pub max_visits_per_second: u32,
    /// Who it is.
    pub identity: Identity,
    /// Where time comes from.
    pub clock: Clock,
}

/// What others see of it.
pub struct Windows {
    /// The state.
    pub snapshot: watch::Sender<Snapshot>,
    /// The measurements.
    pub metrics: Metrics,
    /// What happened, in words.
    pub voice: Voice,
}

/// The tables to follow.
pub fn bindings(following: Following) -> Vec<Table> {
    let names = match (following.changes, following.canary) {
        (false, _) => &[][..],
        (true, false) => &[DISTRIBUTIONS][..],
        (true, true) => &[DISTRIBUTIONS, CANARY][..],
    };
    names
        .iter()
        .map(|name| Table::new("public", *name))
        .collect()
}

/// Runs the agent until `shutdown` is cancelled; fails only when one of its own tasks does.
pub async fn run(
    config: Config,
    windows: Windows,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let now = config.clock.now();
    let mut driver = Driver::new(
        Agent::new(config.identity.id, config.max_visits_per_second, now)
            .listening(config.listen_by),
        &config,
        windows,
    );
    let stopped = driver.follow(&shutdown).await;
    driver.end().await;
    stopped
}

struct Driver {
    agent: Agent,
    clock: Clock,
    windows: Windows,
    inputs: mpsc::Receiver<Input>,
    events: mpsc::Receiver<FeedEvent>,
    lanes: Option<LaneJobs>,
    commands: mpsc::Sender<FeedCommand>,
    feed_shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    following: Following,
    realtime: PerTransport<Told>,
    progress: Progress,
    next_snapshot: Mono,
    error_kinds: BTreeMap<ErrorKind, u64>,
    summary: Summary,
    status_summary: Arc<StatusSummary>,
}

/// What was last told of one way.
#[derive(Default)]
struct Told {
    /// Nothing of a way that is not followed.
    state: Option<WayState>,
    down: Option<(ErrorKind, String)>,
}

/// The state of a way that is.
const LIVE: &str = "live";

struct LaneJobs {
    batches: mpsc::Sender<Batch>,
    reads: mpsc::Sender<ReadRequest>,
    maintenance: mpsc::Sender<MaintenanceTask>,
}

impl Driver {
    fn new(agent: Agent, config: &Config, windows: Windows) -> Self {
        let (answers_in, inputs) = mpsc::channel(WAITING);
        let (events_in, events) = mpsc::channel(WAITING);
        let (commands, commands_out) = mpsc::channel(WAITING);
        let (batches, batches_out) = mpsc::channel(1);
        let (reads, reads_out) = mpsc::channel(1);
        let (maintenance, chores_out) = mpsc::channel(1);
        let answers = Answers {
            inputs: answers_in,
            clock: config.clock,
        };
        let link = || ReconnectingConnection::new(config.database.clone());
        let feed_shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        {
            let (link, answers) = (link(), answers.clone());
            tasks.spawn(async move {
                workers::writer(link, batches_out, answers).await;
                "writer"
            });
        }
        {
            let (link, answers) = (link(), answers.clone());
            tasks.spawn(async move {
                workers::reader(link, reads_out, answers).await;
                "reader"
            });
        }
        {
            let (link, identity, seen) = (
                link(),
                config.identity.clone(),
                windows.snapshot.subscribe(),
            );
            tasks.spawn(async move {
                workers::keeper(link, chores_out, answers, identity, seen).await;
                "keeper"
            });
        }
        {
            let (feed_config, shutdown) = (config.feed.clone(), feed_shutdown.clone());
            tasks.spawn(async move {
                feed::run(feed_config, commands_out, events_in, shutdown).await;
                "feed"
            });
        }
        let now = config.clock.now();
        Self {
            agent,
            clock: config.clock,
            windows,
            inputs,
            events,
            lanes: Some(LaneJobs {
                batches,
                reads,
                maintenance,
            }),
            commands,
            feed_shutdown,
            tasks,
            following: Following::at_first(config.listen_by),
            realtime: PerTransport::default(),
            progress: Progress::new(now),
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
            self.show(now);
            if let Some(by) = stop_by
                && (self.agent.is_idle() || now >= by)
            {
                return Ok(());
            }
            let tick = self
                .agent
                .next_deadline(now)
                .map_or(self.next_snapshot, |(at, _)| at.min(self.next_snapshot));
            let input = tokio::select! {
                biased;
                input = self.inputs.recv() => input.context("all lanes have ended")?,
                () = shutdown.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(self.clock.now().plus(STOP_WITHIN));
                    Input::Stop
                }
                Some(ended) = self.tasks.join_next() => {
                    let name = ended.context("a task of the agent panicked")?;
                    anyhow::bail!("the {name} ended by itself");
                }
                Some(event) = self.events.recv() => match self.news(&event) {
                    Some(news) => Input::RealtimeEvent(news),
                    None => continue,
                },
                () = alarm.at(self.clock.instant(tick)) => Input::Tick,
            };
            self.handle(input);
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        if let Some(kind) = trouble_of(&input) {
            self.count(kind);
        }
        if let Input::Stored(Stored::Rows(stored), Some(round_trip)) = &input
            && let (Some(batch), Some(db)) = (self.agent.storing(), self.agent.db_time(now))
        {
            let late = batch
                .rows
                .iter()
                .filter(|row| stored.contains(&row.id))
                .map(|row| db.micros_since(row.at))
                .max();
            let took = round_trip.received.since(round_trip.sent);
            self.windows.metrics.stored(late.unwrap_or(0), took);
        }
        if let Some(lane) = Lane::answering(&input) {
            self.progress.answered(lane);
        }
        let had_begun = self.agent.health().has_begun();
        self.agent.handle(input, now);
        if !had_begun && self.agent.health().has_begun() {
            self.next_snapshot = now; // somebody waits for it to be ready
        }
    }

    fn count(&mut self, kind: ErrorKind) {
        *self.error_kinds.entry(kind).or_insert(0) += 1;
    }

    /// Hands the core's actions to who carries them out. A lane has one job at a time, so there is always room.
    fn carry_out(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            let Some(lanes) = &self.lanes else { return };
            if let Some(lane) = Lane::doing(&action) {
                self.progress.given(lane, self.clock.now());
            }
            let taken = match action {
                Action::Store(batch) => lanes.batches.try_send(batch).is_ok(),
                Action::Read(what) => lanes.reads.try_send(what).is_ok(),
                Action::Keep(task) => lanes.maintenance.try_send(task).is_ok(),
                Action::Revive(transport, Reconnect::Rejoin) => self.command(FeedCommand::Rejoin(
                    transport,
                    "no echo within 10 s".to_owned(),
                )),
                Action::Revive(_, Reconnect::Reopen) => {
                    self.command(FeedCommand::Reopen("no echo within 10 s, again".to_owned()))
                }
                Action::Follow(following) => self.refollow(following),
                Action::Tell(notice) => {
                    self.tell(&notice);
                    true
                }
            };
            debug_assert!(
                taken,
                "a lane has one job at a time, and the feed few commands"
            );
        }
    }

    fn tell(&mut self, notice: &Notice) {
        if let Notice::Echoed(transport, after) = notice {
            self.windows.metrics.echoed(*transport, *after);
        }
        for said in said(notice) {
            self.say(said);
        }
    }

    fn say(&mut self, said: Said) {
        let now = self.clock.now();
        self.windows.voice.say(said, self.agent.db_time(now), now);
    }

    /// Follows something else from now on; the tables are joined for anew, unless the broadcasts alone are the news.
    fn refollow(&mut self, following: Following) -> bool {
        let before = std::mem::replace(&mut self.following, following);
        let broadcasts_alone = before != following && bindings(before) == bindings(following);
        self.command(FeedCommand::Broadcasts(following.broadcast))
            && self.command(FeedCommand::Bindings(bindings(following)))
            && (broadcasts_alone
                || self.command(FeedCommand::Rejoin(
                    Transport::Changes,
                    "the publication changed".to_owned(),
                )))
    }

    fn command(&self, command: FeedCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Takes an event of the feed in; what it means to the core.
    fn news(&mut self, event: &FeedEvent) -> Option<RealtimeEvent> {
        match event {
            FeedEvent::Live(transport) => {
                let since = self.clock.now();
                let told = self.realtime.of_mut(*transport);
                let live = |state: &WayState| state.live;
                if !told.state.as_ref().is_some_and(live) {
                    info!(transport = transport.as_str(), "Realtime is live");
                    let (words, live) = (LIVE.to_owned(), true);
                    told.state = Some(WayState { words, live, since });
                }
                told.down = None;
            }
            FeedEvent::Down(down) => self.went_down(down),
            FeedEvent::Changed(_) | FeedEvent::Broadcast(..) => {}
            FeedEvent::Lost(why) => {
                info!(reason = %why, "a Realtime event cannot be told apart; reading the table");
            }
        }
        let (transport, what, id) = happened(event);
        let at = self.agent.db_time(self.clock.now());
        let event_seen = ReceivedEvent {
            at,
            transport,
            what,
            id,
        };
        self.windows.voice.recent().event(event_seen);
        news_of(event)
    }

    fn went_down(&mut self, down: &Down) {
        let since = self.clock.now();
        let told = self.realtime.of_mut(down.transport);
        let before = told.down.replace((down.class, down.reason.clone()));
        let is_news = before != told.down;
        let since = match &told.state {
            Some(state) if !state.live => state.since,
            Some(_) | None => since,
        };
        let (words, live) = (down.to_string(), false);
        let followed = self.following.by(down.transport);
        told.state = followed.then_some(WayState { words, live, since });
        if down.class == ErrorKind::Asked {
            return;
        }
        self.count(down.class);
        if is_news {
            let text = format!(
                "Realtime is not live, by {}: {down}; pacing does not need it, edits are seen by the sync",
                down.transport.as_str()
            );
            self.say(Said::warning("Realtime is not live", text));
        }
    }

    /// `live`, or how each way stands that is not.
    fn realtime(&self) -> String {
        let states = self.realtime.both().map(|told| {
            let state = told.state.as_ref();
            state.map(|state| state.words.as_str())
        });
        match states {
            [None, None] => "connecting".to_owned(),
            [Some(one), None] | [None, Some(one)] => one.to_owned(),
            [Some(LIVE), Some(LIVE)] => LIVE.to_owned(),
            [Some(changes), Some(broadcast)] => {
                format!("postgres_changes: {changes}; broadcast: {broadcast}")
            }
        }
    }

    /// Publishes the state, and sums up in the log.
    fn show(&mut self, now: Mono) {
        if now < self.next_snapshot {
            return;
        }
        self.next_snapshot = now.plus(SNAPSHOT_EVERY);
        let deadline = self.agent.next_deadline(now);
        if let Some(hang) = self.progress.look(deadline, now) {
            let text = "the agent hangs, a defect of visit-pacer; restart it (systemd's watchdog and a liveness probe of \
                        /healthz do), and report it";
            self.say(Said::warning("hangs", text).because(&hang));
        }
        if let Some(status_summary) = self.agent.status_summary(now) {
            self.status_summary = Arc::new(status_summary);
        }
        let snapshot = Snapshot {
            at: Some(now),
            db_time: self.agent.db_time(now),
            progressed_at: Some(self.progress.made_at()),
            counters: self.agent.counters(),
            health: self.agent.health(),
            paused: self.agent.paused(),
            realtime: self.realtime(),
            transports: PerTransport {
                changes: self.realtime.changes.state.clone(),
                broadcast: self.realtime.broadcast.state.clone(),
            },
            error_kinds: self.error_kinds.clone(),
            agents: self.agent.agents(),
            rows: self.agent.rows(),
            rows_owned: self.agent.rows_owned(),
            status_summary: Arc::clone(&self.status_summary),
        };
        self.windows.voice.turn_the_minute(now);
        self.summary
            .of_the_minute(&snapshot, &self.windows.metrics, now);
        // Nobody need look.
        let _seen = self.windows.snapshot.send(snapshot).is_ok();
    }

    /// Closes channel and connections: dropping the lanes' job queues ends them.
    async fn end(&mut self) {
        self.feed_shutdown.cancel();
        self.lanes = None;
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, ending).await.is_err() {
            warn!(
                "not everybody said goodbye in time; leaving anyway; the other agents, and the database, notice by themselves"
            );
            self.tasks.shutdown().await;
        }
    }
}

/// What an event of the feed means to the core; `None`: nothing, it is of a table of no interest.
pub fn news_of(event: &FeedEvent) -> Option<RealtimeEvent> {
    match event {
        FeedEvent::Live(transport) => Some(RealtimeEvent::Live(*transport)),
        FeedEvent::Down(down) if down.class == ErrorKind::Table => Some(RealtimeEvent::Unfollowed),
        FeedEvent::Down(down) => Some(RealtimeEvent::Down(down.transport)),
        FeedEvent::Changed(change) => changed(change),
        FeedEvent::Broadcast(broadcast, replayed) => broadcasted(*broadcast, *replayed),
        FeedEvent::Lost(_) => Some(RealtimeEvent::Unclear),
    }
}

fn changed(change: &Change) -> Option<RealtimeEvent> {
    match (change.table.name.as_str(), change.id) {
        (CANARY, _) => Some(RealtimeEvent::Canary(Transport::Changes)),
        (DISTRIBUTIONS, Some(id)) if change.damage.is_none() => Some(RealtimeEvent::Row(
            Transport::Changes,
            id,
            change.config_version,
        )),
        (DISTRIBUTIONS, _) => Some(RealtimeEvent::Unclear),
        _ => None,
    }
}

/// A canary that is told again from the server's store proves nothing.
fn broadcasted(broadcast: Broadcast, replayed: bool) -> Option<RealtimeEvent> {
    match broadcast {
        Broadcast::Row { id, config_version } => {
            Some(RealtimeEvent::Row(Transport::Broadcast, id, config_version))
        }
        Broadcast::Canary { .. } => {
            (!replayed).then_some(RealtimeEvent::Canary(Transport::Broadcast))
        }
    }
}

/// What an answer of the database says to have gone wrong.
fn trouble_of(input: &Input) -> Option<ErrorKind> {
    match input {
        Input::Read(Err(failure))
        | Input::TaskOutcome(Err(failure))
        | Input::Stored(Stored::Failed(failure) | Stored::Unsent(failure), _) => Some(failure.kind),
        Input::Tick
        | Input::RealtimeEvent(_)
        | Input::Read(Ok(_))
        | Input::TaskOutcome(Ok(_))
        | Input::Stored(Stored::Rows(_), _)
        | Input::Stop => None,
    }
}

/// An event of the feed for people: its way, what it tells, of which row.
fn happened(event: &FeedEvent) -> (Option<Transport>, String, Option<Uuid>) {
    let version = |version: Option<i64>| {
        version.map_or_else(String::new, |version| format!(", version {version}"))
    };
    match event {
        FeedEvent::Live(transport) => (Some(*transport), LIVE.to_owned(), None),
        FeedEvent::Down(down) => (Some(down.transport), format!("not live: {down}"), None),
        FeedEvent::Changed(change) => {
            let what = format!("{}{}", change.table.name, version(change.config_version));
            (Some(Transport::Changes), what, change.id)
        }
        FeedEvent::Broadcast(Broadcast::Row { id, config_version }, replayed) => {
            let again = if *replayed { ", told again" } else { "" };
            let what = format!("{DISTRIBUTIONS}{}{again}", version(*config_version));
            (Some(Transport::Broadcast), what, Some(*id))
        }
        FeedEvent::Broadcast(Broadcast::Canary { .. }, _) => {
            (Some(Transport::Broadcast), "canary".to_owned(), None)
        }
        FeedEvent::Lost(why) => (None, format!("unclear: {why}"), None),
    }
}
