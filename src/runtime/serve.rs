//! One agent from start to stop: the web pages first, so that it can be asked why it is not ready; then a look at the
//! database, which is waited for where it does not answer; then the loop.

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
use super::driver::{self, Config, Windows, bindings};
use super::log_messages::{Said, Voice};
use super::metrics::readings;
use super::notify;
use super::snapshot::Snapshot;
use crate::domain::error_policy::BackoffState;
use crate::domain::transport::{Following, ListenBy};
use crate::observe::recent::Recent;
use crate::observe::text::{Format, render};
use crate::observe::{Metrics, NoRows, RowsAsked, process};
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
    /// Where the table is.
    pub database: Database,
    /// Where Realtime is.
    pub endpoint: Endpoint,
    /// Which ways to listen.
    pub listen_by: ListenBy,
    /// The bound of the whole agent.
    pub max_visits_per_second: u32,
    /// Rows that have series of their own in every scrape.
    pub metrics_rows: RowsAsked,
    /// Where the pages are.
    pub listener: TcpListener,
    /// Who may see them.
    pub access: Access,
    /// Where the state is shown.
    pub snapshot: watch::Sender<Snapshot>,
}

/// Why an agent cannot work with what it was given: exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Waiting would mend nothing: the login, a right.
    #[error("{place}: {failure}")]
    Halts {
        /// Host, port and database.
        place: String,
        /// What the database says.
        failure: Failure,
    },
    /// The schema is missing or old.
    #[error("the schema of {place} is {state}; run: visit-pacer migrate")]
    Schema {
        /// Host, port and database.
        place: String,
        /// `missing`, or which files it lacks.
        state: String,
    },
}

/// Runs an agent until `shutdown` is cancelled.
pub async fn serve(service: Service, shutdown: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::start();
    let (waiting_for, waits_for) = watch::channel("starting".to_owned());
    let seen = service.snapshot.subscribe();
    let metrics = Metrics::default();
    let identity = identity();
    let mut voice = Voice::new(Recent::default());
    let scrape = Arc::new(Scrape {
        seen: seen.clone(),
        clock,
        metrics: metrics.clone(),
        database: service.database.clone(),
        always: service.metrics_rows,
    });
    let (dashboard, dashboard_queries) = dashboard(service.access);
    let pages = pages(seen.clone(), clock, scrape, (waits_for.clone(), dashboard));
    let info = AgentInfo {
        identity: identity.clone(),
        read_only: pages.dashboard.access.read_only,
        metrics: metrics.clone(),
        recent: voice.recent().clone(),
        unready: Arc::clone(&pages.unready),
    };
    let mut web = JoinSet::new();
    let web_shutdown = CancellationToken::new();
    // It looks for no pooler: each of its calls is a transaction of its own.
    let link = ReconnectingConnection::new(service.database.clone().in_transactions());
    let shown = seen.clone();
    web.spawn(async move {
        queries::serve(info, link, clock, (shown, dashboard_queries)).await;
        Ok(())
    });
    web.spawn(web::serve(service.listener, pages, web_shutdown.clone()));
    let mut notifier = JoinSet::new();
    notifier.spawn(notify::run(waits_for, seen, clock, shutdown.clone()));

    let fit = Box::pin(preflight(
        service.database,
        &waiting_for,
        (&mut voice, clock),
        &shutdown,
    ));
    if let Some(database) = fit.await? {
        for weakness in weaknesses(&database) {
            voice.say(weakness, None, clock.now());
        }
        let config = Config {
            listen_by: service.listen_by,
            feed: feed(service.endpoint, service.listen_by),
            database,
            max_visits_per_second: service.max_visits_per_second,
            identity,
            clock,
        };
        let windows = Windows {
            snapshot: service.snapshot,
            metrics,
            voice,
        };
        driver::run(config, windows, shutdown).await?;
        info!("stopped");
    }
    // Systemd is told of the stop.
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
fn weaknesses(database: &Database) -> Vec<Said> {
    let place = database.place();
    let unverified = database.is_unverified().then(|| {
        format!(
            "nobody checks who answers at {place}, and whoever stands between can read the password; \
             add ?sslmode=verify-full (and sslrootcert=FILE for an authority of your own) to DATABASE_URL"
        )
    });
    let pooled = database.is_pooled().then(|| {
        format!(
            "{place} is a transaction pooler: each call takes four round trips instead of one; use the session pooler: {}",
            database.session_url()
        )
    });
    let weaknesses = unverified.into_iter().chain(pooled);
    weaknesses
        .map(|text| Said::warning("connection", text))
        .collect()
}

/// Waits for the database, and refuses one that cannot be worked with; `None` where it is asked to stop meanwhile.
async fn preflight(
    database: Database,
    waiting_for: &watch::Sender<String>,
    (voice, clock): (&mut Voice, Clock),
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Database>> {
    let mut retry = BackoffState::default();
    let mut told = false;
    loop {
        let failure = match look(&database).await {
            Ok(recognised) => return Ok(Some(recognised)),
            Err(DistributionStatus::Unfit(unfit)) => return Err(unfit.into()),
            Err(DistributionStatus::Away(failure)) => failure,
        };
        if !told {
            let text = format!(
                "cannot work with {} yet; trying again; see that it runs, and that DATABASE_URL names it",
                database.place()
            );
            voice.say(
                Said::warning("database away", text).because(&failure),
                None,
                clock.now(),
            );
            told = true;
        }
        waiting_for.send_replace(format!("waiting for the database: {failure}"));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(retry.next(failure.policy().backoff, random())) => {}
        }
    }
}

enum DistributionStatus {
    Unfit(Unfit),
    Away(Failure),
}

async fn look(database: &Database) -> Result<Database, DistributionStatus> {
    let place = database.place();
    let sort = |failure: Failure| {
        if failure.policy().halts {
            let place = place.clone();
            DistributionStatus::Unfit(Unfit::Halts { place, failure })
        } else {
            DistributionStatus::Away(failure)
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
        return Err(DistributionStatus::Unfit(Unfit::Schema { place, state }));
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

/// What `/metrics` is made of, each time that somebody asks.
struct Scrape {
    seen: watch::Receiver<Snapshot>,
    clock: Clock,
    metrics: Metrics,
    database: Database,
    always: RowsAsked,
}

impl Scrape {
    fn text(&self, rows: &str, accept: &str) -> Scraped {
        let rows: RowsAsked = rows.parse().map_err(|error: NoRows| error.to_string())?;
        let rows = if rows.0.is_empty() {
            &self.always
        } else {
            &rows
        };
        let format = Format::accepted(accept);
        let snapshot = self.seen.borrow().clone();
        let mut families = readings(&snapshot, self.clock.now(), self.database.open(), rows);
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
    seen: watch::Receiver<Snapshot>,
    clock: Clock,
    scrape: Arc<Scrape>,
    (waits_for, dashboard): (watch::Receiver<String>, Dashboard),
) -> Pages {
    let turned = seen.clone();
    Pages {
        loop_age: Arc::new(move || {
            turned
                .borrow()
                .progressed_at
                .map(|at| clock.now().since(at))
        }),
        unready: Arc::new(move || {
            let snapshot = seen.borrow();
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
