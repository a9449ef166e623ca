//! One agent from start to stop: first the web pages, which say why it is not ready; then the preflight, which retries until
//! the database answers; then the main loop.

use std::sync::Arc;

use anyhow::Context as _;
use rand::random;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use super::clock::Clock;
use super::dashboard::queries;
use super::dashboard::snapshot::AgentInfo;
use super::driver::{self, Config, Outputs};
use super::log_limiter::LogLimiter;
use super::metrics;
use super::notify;
use super::realtime_state::bindings;
use super::snapshot::Snapshot;
use crate::domain::error_policy::BackoffState;
use crate::domain::event::Event;
use crate::domain::transport::{Following, ListenBy};
use crate::observe::recent::Recent;
use crate::observe::text::{Format, render};
use crate::observe::{Metrics, SelectedDistributions, SelectionError, process};
use crate::postgres::failure::Failure;
use crate::postgres::maintenance::Identity;
use crate::postgres::migrations;
use crate::postgres::reconnect::{Database, ReconnectingConnection, with_timeout};
use crate::realtime::{Endpoint, FeedConfig};
use crate::web::api::{Dashboard, DashboardQuery, LISTENERS_MAX, QUERIES_MAX};
use crate::web::guard::Access;
use crate::web::{self, Pages, Scraped};

/// What to serve.
pub struct Service {
    /// The database.
    pub database: Database,
    /// Realtime.
    pub endpoint: Endpoint,
    /// Which transports to use.
    pub listen_by: ListenBy,
    /// The limit of the whole agent.
    pub max_visits_per_second: u32,
    /// Distributions with series of their own in every scrape.
    pub metrics_distributions: SelectedDistributions,
    /// For the web pages.
    pub listener: TcpListener,
    /// Who may see them.
    pub access: Access,
    /// Where the state is published.
    pub snapshot: watch::Sender<Snapshot>,
}

/// Why an agent cannot work with what it was given: exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Waiting would not help: the login, a missing right.
    #[error("{place}: {failure}")]
    Halts {
        /// Host, port and database.
        place: String,
        /// The database's error.
        failure: Failure,
    },
    /// The schema is missing or old.
    #[error("the schema of {place} is {state}; run: visit-pacer migrate")]
    Schema {
        /// Host, port and database.
        place: String,
        /// `missing`, or the migrations that are pending.
        state: String,
    },
}

/// Runs an agent until `shutdown` is cancelled.
pub async fn serve(service: Service, shutdown: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::start();
    let (waiting_for, waits_for) = watch::channel("starting".to_owned());
    let snapshot = service.snapshot.subscribe();
    let metrics = Metrics::default();
    let identity = identity();
    let mut log = LogLimiter::new(Recent::default());
    let scrape = Arc::new(Scrape {
        snapshot: snapshot.clone(),
        clock,
        metrics: metrics.clone(),
        database: service.database.clone(),
        always: service.metrics_distributions,
    });
    let (dashboard, dashboard_queries) = dashboard(service.access);
    let pages = pages(
        snapshot.clone(),
        clock,
        scrape,
        (waits_for.clone(), dashboard),
    );
    let info = AgentInfo {
        identity: identity.clone(),
        read_only: pages.dashboard.access.read_only,
        metrics: metrics.clone(),
        recent: log.recent().clone(),
        unready: Arc::clone(&pages.unready),
    };
    let mut web = JoinSet::new();
    let web_shutdown = CancellationToken::new();
    // Each of its calls is a transaction of its own, so it needs no check for a pooler.
    let connection = ReconnectingConnection::new(service.database.clone().in_transactions());
    let shown = snapshot.clone();
    web.spawn(async move {
        queries::serve(info, connection, clock, (shown, dashboard_queries)).await;
        Ok(())
    });
    web.spawn(web::serve(service.listener, pages, web_shutdown.clone()));
    let mut notifier = JoinSet::new();
    notifier.spawn(notify::run(waits_for, snapshot, clock, shutdown.clone()));

    let preflight = Box::pin(preflight(
        service.database,
        &waiting_for,
        (&mut log, clock),
        &shutdown,
    ));
    if let Some(database) = preflight.await? {
        for warning in connection_warnings(&database) {
            log.log(warning, None, clock.now());
        }
        let config = Config {
            listen_by: service.listen_by,
            feed: feed(service.endpoint, service.listen_by),
            database,
            max_visits_per_second: service.max_visits_per_second,
            identity,
            clock,
        };
        let outputs = Outputs {
            snapshot: service.snapshot,
            metrics,
            log,
        };
        driver::run(config, outputs, shutdown).await?;
        info!("Stopped");
    }
    // It notifies systemd of the stop.
    while notifier.join_next().await.is_some() {}
    web_shutdown.cancel();
    web.shutdown().await;
    Ok(())
}

fn feed(endpoint: Endpoint, listen_by: ListenBy) -> FeedConfig {
    let following = Following::at_first(listen_by);
    FeedConfig {
        endpoint,
        bindings: bindings(following),
        broadcasts: following.broadcast,
    }
}

/// What works, and could be better.
fn connection_warnings(database: &Database) -> impl Iterator<Item = Event> {
    let unverified =
        (database.is_unverified()).then(|| Event::CONNECTION_UNVERIFIED.because(database.place()));
    let pooled =
        (database.is_pooled()).then(|| Event::TRANSACTION_POOLER.because(database.session_url()));
    unverified.into_iter().chain(pooled)
}

/// Waits for the database, and refuses one that the agent cannot work with; `None` if a stop is requested meanwhile.
async fn preflight(
    database: Database,
    waiting_for: &watch::Sender<String>,
    (log, clock): (&mut LogLimiter, Clock),
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Database>> {
    let mut backoff = BackoffState::default();
    let mut is_logged = false;
    loop {
        let failure = match check(&database).await {
            Ok(recognised) => return Ok(Some(recognised)),
            Err(PreflightError::Unfit(unfit)) => return Err(unfit.into()),
            Err(PreflightError::Unavailable(failure)) => failure,
        };
        if !is_logged {
            let event = Event::DATABASE_UNAVAILABLE.failure(&failure);
            log.log(event, None, clock.now());
            is_logged = true;
        }
        waiting_for.send_replace(format!("waiting for the database: {failure}"));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.next(failure.policy().backoff, random())) => {}
        }
    }
}

enum PreflightError {
    Unfit(Unfit),
    Unavailable(Failure),
}

async fn check(database: &Database) -> Result<Database, PreflightError> {
    let place = database.place();
    let sort = |failure: Failure| {
        if failure.policy().halts {
            let place = place.clone();
            PreflightError::Unfit(Unfit::Halts { place, failure })
        } else {
            PreflightError::Unavailable(failure)
        }
    };
    let database = Box::pin(database.clone().recognised())
        .await
        .map_err(sort)?;
    let mut connection = database.connect().await.map_err(sort)?;
    let missing = with_timeout(migrations::missing(&mut connection))
        .await
        .map_err(sort)?;
    if !missing.is_empty() {
        let state = if missing.len() == migrations::MIGRATIONS.len() {
            "missing".to_owned()
        } else {
            let names: Vec<&str> = missing.iter().map(|file| file.name).collect();
            format!("old: it lacks {}", names.join(", "))
        };
        return Err(PreflightError::Unfit(Unfit::Schema { place, state }));
    }
    Ok(database)
}

fn identity() -> Identity {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "agent".to_owned(), |name| name.trim().to_owned());
    Identity {
        id: Uuid::from_u128(random()),
        name: format!("{host}:{}", std::process::id()),
    }
}

/// The sources of `/metrics`.
struct Scrape {
    snapshot: watch::Receiver<Snapshot>,
    clock: Clock,
    metrics: Metrics,
    database: Database,
    always: SelectedDistributions,
}

impl Scrape {
    fn text(&self, selected: &str, accept: &str) -> Scraped {
        let selected: SelectedDistributions = selected
            .parse()
            .map_err(|error: SelectionError| error.to_string())?;
        let selected = if selected.0.is_empty() {
            &self.always
        } else {
            &selected
        };
        let format = Format::accepted(accept);
        let snapshot = self.snapshot.borrow().clone();
        let (now, connections) = (self.clock.now(), self.database.open());
        let mut families = metrics::families(&snapshot, now, connections, selected);
        families.extend(self.metrics.families());
        let text = render(families, process::families(), format);
        Ok((format.content_type(), text))
    }
}

fn dashboard(access: Access) -> (Dashboard, mpsc::Receiver<DashboardQuery>) {
    let (queries, arriving) = mpsc::channel(QUERIES_MAX);
    let dashboard = Dashboard {
        queries,
        listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
        access: Arc::new(access),
    };
    (dashboard, arriving)
}

fn pages(
    snapshot: watch::Receiver<Snapshot>,
    clock: Clock,
    scrape: Arc<Scrape>,
    (waits_for, dashboard): (watch::Receiver<String>, Dashboard),
) -> Pages {
    let latest = snapshot.clone();
    Pages {
        loop_age: Arc::new(move || {
            latest
                .borrow()
                .progressed_at
                .map(|at| clock.now().since(at))
        }),
        unready: Arc::new(move || {
            let snapshot = snapshot.borrow();
            if snapshot.at.is_none() {
                return vec![waits_for.borrow().clone()];
            }
            snapshot.unready(clock.now())
        }),
        metrics: Arc::new(move |rows, accept| scrape.text(rows, accept)),
        dashboard,
    }
}

/// Resolves when the process is asked to stop: SIGTERM, or Ctrl-C.
pub async fn asked_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        pressed = tokio::signal::ctrl_c() => pressed.context("listen for Ctrl-C")?,
    }
    Ok(())
}
