//! The one loop. Its branches only say what happened; the core decides; what it asks for goes to the lanes and the feed.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock::Clock;
use super::lanes::{self, Answers};
use super::snapshot::Snapshot;
use super::words;
use crate::domain::agent::{Action, Agent, Chore, Counters, Input, News, Stored, What};
use crate::domain::batch::Batch;
use crate::domain::policy::Trouble;
use crate::domain::proof::Verdict;
use crate::domain::time::Mono;
use crate::domain::way::{Following, ListenBy, Way, Ways};
use crate::observe::Metrics;
use crate::postgres::chores::Identity;
use crate::postgres::link::{Database, Link};
use crate::realtime::{Broadcast, Change, Down, FeedCommand, FeedConfig, FeedEvent, Table, feed};

/// The tables that are followed; the canary only where it is published.
pub const DISTRIBUTIONS: &str = "visit_distribution";
/// See [`DISTRIBUTIONS`].
pub const CANARY: &str = "visit_pacer_canary";

/// Answers and events that may wait for the loop.
const WAITING: usize = 256;
/// How often the snapshot is taken anew.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);
/// How often the log sums up.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);
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
    realtime: Ways<Told>,
    next_snapshot: Mono,
    next_summary: Mono,
    summed_up: Counters,
}

/// What was last told of one way.
#[derive(Default)]
struct Told {
    /// `live`, or why not; nothing of a way that is not followed.
    state: Option<String>,
    down: Option<(Trouble, String)>,
}

/// The state of a way that is.
const LIVE: &str = "live";

struct LaneJobs {
    batches: mpsc::Sender<Batch>,
    reads: mpsc::Sender<What>,
    chores: mpsc::Sender<Chore>,
}

impl Driver {
    fn new(agent: Agent, config: &Config, windows: Windows) -> Self {
        let (answers_in, inputs) = mpsc::channel(WAITING);
        let (events_in, events) = mpsc::channel(WAITING);
        let (commands, commands_out) = mpsc::channel(WAITING);
        let (batches, batches_out) = mpsc::channel(1);
        let (reads, reads_out) = mpsc::channel(1);
        let (chores, chores_out) = mpsc::channel(1);
        let answers = Answers {
            inputs: answers_in,
            clock: config.clock,
        };
        let link = || Link::new(config.database.clone());
        let feed_shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        {
            let (link, answers) = (link(), answers.clone());
            tasks.spawn(async move {
                lanes::writer(link, batches_out, answers).await;
                "writer"
            });
        }
        {
            let (link, answers) = (link(), answers.clone());
            tasks.spawn(async move {
                lanes::reader(link, reads_out, answers).await;
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
                lanes::keeper(link, chores_out, answers, identity, seen).await;
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
                chores,
            }),
            commands,
            feed_shutdown,
            tasks,
            following: Following::at_first(config.listen_by),
            realtime: Ways::default(),
            next_snapshot: now,
            next_summary: now.plus(SUMMARY_EVERY),
            summed_up: Counters::default(),
        }
    }

    async fn follow(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut stop_by = None;
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
                    Some(news) => Input::News(news),
                    None => continue,
                },
                () = sleep_until(self.clock.instant(tick)) => Input::Tick,
            };
            self.handle(input);
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        if let Input::Stored(Stored::Rows(stored), Some(trip)) = &input
            && let (Some(batch), Some(db)) = (self.agent.storing(), self.agent.db_time(now))
        {
            let late = batch
                .rows
                .iter()
                .filter(|row| stored.contains(&row.id))
                .map(|row| db.micros_since(row.at))
                .max();
            let took = trip.received.since(trip.sent);
            self.windows.metrics.stored(late.unwrap_or(0), took);
        }
        self.agent.handle(input, now);
    }

    /// Hands the core's actions to who carries them out. A lane has one job at a time, so there is always room.
    fn carry_out(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            let Some(lanes) = &self.lanes else { return };
            let taken = match action {
                Action::Store(batch) => lanes.batches.try_send(batch).is_ok(),
                Action::Read(what) => lanes.reads.try_send(what).is_ok(),
                Action::Keep(chore) => lanes.chores.try_send(chore).is_ok(),
                Action::Revive(way, Verdict::Rejoin) => {
                    self.command(FeedCommand::Rejoin(way, "no echo within 10 s".to_owned()))
                }
                Action::Revive(_, Verdict::Reopen) => {
                    self.command(FeedCommand::Reopen("no echo within 10 s, again".to_owned()))
                }
                Action::Follow(following) => self.refollow(following),
                Action::Tell(notice) => {
                    words::tell(&notice);
                    true
                }
            };
            debug_assert!(
                taken,
                "a lane has one job at a time, and the feed few commands"
            );
        }
    }

    /// Follows something else from now on; the tables are joined for anew, unless the broadcasts alone are the news.
    fn refollow(&mut self, following: Following) -> bool {
        let before = std::mem::replace(&mut self.following, following);
        let broadcasts_alone = before != following && bindings(before) == bindings(following);
        self.command(FeedCommand::Broadcasts(following.broadcast))
            && self.command(FeedCommand::Bindings(bindings(following)))
            && (broadcasts_alone
                || self.command(FeedCommand::Rejoin(
                    Way::Changes,
                    "the publication changed".to_owned(),
                )))
    }

    fn command(&self, command: FeedCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Takes an event of the feed in; what it means to the core.
    fn news(&mut self, event: &FeedEvent) -> Option<News> {
        match event {
            FeedEvent::Live(way) => {
                let told = self.realtime.of_mut(*way);
                if told.state.as_deref() != Some(LIVE) {
                    info!(way = way.as_str(), "Realtime is live");
                }
                *told = Told {
                    state: Some(LIVE.to_owned()),
                    down: None,
                };
            }
            FeedEvent::Down(down) => self.went_down(down),
            FeedEvent::Changed(_) | FeedEvent::Broadcast(..) => {}
            FeedEvent::Lost(why) => {
                info!(reason = %why, "a Realtime event cannot be told apart; reading the table");
            }
        }
        news_of(event)
    }

    fn went_down(&mut self, down: &Down) {
        let told = self.realtime.of_mut(down.way);
        let before = told.down.replace((down.class, down.reason.clone()));
        if down.class != Trouble::Asked && before != told.down {
            warn!(
                way = down.way.as_str(),
                "Realtime is not live: {down}; pacing does not need it, edits are seen by the sync"
            );
        }
        told.state = self.following.by(down.way).then(|| down.to_string());
    }

    /// `live`, or how each way stands that is not.
    fn realtime(&self) -> String {
        let states = self.realtime.both().map(|told| told.state.as_deref());
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
        let mut snapshot = Snapshot {
            at: Some(now),
            counters: self.agent.counters(),
            health: self.agent.health(),
            paused: self.agent.paused(),
            realtime: self.realtime(),
            rows: self.agent.rows(),
            rows_owned: self.agent.rows_owned(),
            ..Snapshot::default()
        };
        snapshot.count(&self.agent.look_at_all(now));
        if now >= self.next_summary {
            self.next_summary = now.plus(SUMMARY_EVERY);
            info!(
                visits = snapshot.counters.visits - self.summed_up.visits,
                rows = snapshot.rows_owned,
                running = self.agent.running(),
                backlog = snapshot.backlog,
                realtime = %snapshot.realtime,
                "the last minute{}",
                stalled(&snapshot.stalled)
            );
            self.summed_up = snapshot.counters;
        }
        // Nobody need look.
        let _seen = self.windows.snapshot.send(snapshot).is_ok();
    }

    /// Closes channel and connections: dropping the lanes' job queues ends them.
    async fn end(&mut self) {
        self.feed_shutdown.cancel();
        self.lanes = None;
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, ending).await.is_err() {
            warn!("not everybody said goodbye in time; leaving anyway");
            self.tasks.shutdown().await;
        }
    }
}

/// What an event of the feed means to the core; `None`: nothing, it is of a table of no interest.
pub fn news_of(event: &FeedEvent) -> Option<News> {
    match event {
        FeedEvent::Live(way) => Some(News::Live(*way)),
        FeedEvent::Down(down) if down.class == Trouble::Table => Some(News::Unfollowed),
        FeedEvent::Down(down) => Some(News::Down(down.way)),
        FeedEvent::Changed(change) => changed(change),
        FeedEvent::Broadcast(broadcast, replayed) => broadcasted(*broadcast, *replayed),
        FeedEvent::Lost(_) => Some(News::Unclear),
    }
}

fn changed(change: &Change) -> Option<News> {
    match (change.table.name.as_str(), change.id) {
        (CANARY, _) => Some(News::Canary(Way::Changes)),
        (DISTRIBUTIONS, Some(id)) if change.damage.is_none() => {
            Some(News::Row(Way::Changes, id, change.config_version))
        }
        (DISTRIBUTIONS, _) => Some(News::Unclear),
        _ => None,
    }
}

/// A canary that is told again from the server's store proves nothing.
fn broadcasted(broadcast: Broadcast, replayed: bool) -> Option<News> {
    match broadcast {
        Broadcast::Row { id, config_version } => {
            Some(News::Row(Way::Broadcast, id, config_version))
        }
        Broadcast::Canary { .. } => (!replayed).then_some(News::Canary(Way::Broadcast)),
    }
}

/// What keeps rows behind, in words; nothing where none is.
fn stalled(rows: &[(&str, usize)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let each: Vec<String> = rows
        .iter()
        .map(|(reason, rows)| format!("{rows} by {reason}"))
        .collect();
    format!("; rows kept behind: {}", each.join(", "))
}
