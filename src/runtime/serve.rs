//! One agent from start to stop: the web pages first, so that it can be asked why it is not ready; then a look at the
//! database, which is waited for where it does not answer; then the loop.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rand::random;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::clock::Clock;
use super::driver::{self, Config, Windows, bindings};
use super::snapshot::Snapshot;
use crate::domain::policy::PacedRetry;
use crate::domain::way::{Following, ListenBy};
use crate::observe::{Metrics, Readings};
use crate::postgres::chores::Identity;
use crate::postgres::fault::Fault;
use crate::postgres::link::{Database, within};
use crate::postgres::migrations;
use crate::realtime::{Endpoint, FeedConfig};
use crate::web::{self, Pages};

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
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub listener: TcpListener,
    /// Where the state is shown.
    pub snapshot: watch::Sender<Snapshot>,
}

/// Why an agent cannot work with what it was given: exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Waiting would mend nothing: the login, a right.
    #[error("{place}: {fault}")]
    Halts {
        /// Host, port and database.
        place: String,
        /// What the database says.
        fault: Fault,
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
    let waiting_for = Arc::new(Mutex::new("starting".to_owned()));
    let seen = service.snapshot.subscribe();
    let metrics = Metrics::new(readings(seen.clone(), clock));
    let pages = pages(seen, clock, metrics.clone(), Arc::clone(&waiting_for));
    let mut web = JoinSet::new();
    let web_shutdown = CancellationToken::new();
    web.spawn(web::serve(service.listener, pages, web_shutdown.clone()));

    let fit = Box::pin(preflight(service.database, &waiting_for, &shutdown));
    if let Some(database) = fit.await? {
        warn_of_weakness(&database);
        let following = Following::at_first(service.listen_by);
        let config = Config {
            listen_by: service.listen_by,
            feed: FeedConfig {
                endpoint: service.endpoint,
                bindings: bindings(following),
                broadcasts: following.broadcast,
            },
            database,
            max_visits_per_second: service.max_visits_per_second,
            identity: identity(),
            clock,
        };
        driver::run(
            config,
            Windows {
                snapshot: service.snapshot,
                metrics,
            },
            shutdown,
        )
        .await?;
        info!("stopped");
    }
    web_shutdown.cancel();
    web.shutdown().await;
    Ok(())
}

/// What works, and could be better.
fn warn_of_weakness(database: &Database) {
    let place = database.place();
    if database.is_unverified() {
        warn!(
            "nobody checks who answers at {place}, and whoever stands between can read the password; \
             add ?sslmode=verify-full (and sslrootcert=FILE for an authority of your own) to DATABASE_URL"
        );
    }
    if database.is_pooled() {
        warn!(
            "{place} is a transaction pooler: each call takes four round trips instead of one; the session pooler is better: {}",
            database.session_url()
        );
    }
}

/// Waits for the database, and refuses one that cannot be worked with; `None` where it is asked to stop meanwhile.
async fn preflight(
    database: Database,
    waiting_for: &Mutex<String>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Database>> {
    let mut retry = PacedRetry::default();
    let mut told = false;
    loop {
        let fault = match look(&database).await {
            Ok(recognised) => return Ok(Some(recognised)),
            Err(Look::Unfit(unfit)) => return Err(unfit.into()),
            Err(Look::Away(fault)) => fault,
        };
        if !told {
            warn!(reason = %fault, "cannot work with {} yet; trying again", database.place());
            told = true;
        }
        *waiting_for.lock().unwrap_or_else(PoisonError::into_inner) =
            format!("waiting for the database: {fault}");
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(retry.next(fault.policy().pace, random())) => {}
        }
    }
}

enum Look {
    Unfit(Unfit),
    Away(Fault),
}

async fn look(database: &Database) -> Result<Database, Look> {
    let place = database.place();
    let sort = |fault: Fault| {
        if fault.policy().halts {
            let place = place.clone();
            Look::Unfit(Unfit::Halts { place, fault })
        } else {
            Look::Away(fault)
        }
    };
    let database = Box::pin(database.clone().recognised())
        .await
        .map_err(sort)?;
    let mut connection = database.connect().await.map_err(sort)?;
    let missing = within(migrations::missing(&mut connection))
        .await
        .map_err(sort)?;
    if !missing.is_empty() {
        let state = if missing.len() == migrations::MIGRATIONS.len() {
            "missing".to_owned()
        } else {
            let names: Vec<&str> = missing.iter().map(|file| file.name).collect();
            format!("old: it lacks {}", names.join(", "))
        };
        return Err(Look::Unfit(Unfit::Schema { place, state }));
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

fn readings(seen: watch::Receiver<Snapshot>, clock: Clock) -> impl Fn() -> Readings + Send + Sync {
    move || seen.borrow().readings(clock.now())
}

fn pages(
    seen: watch::Receiver<Snapshot>,
    clock: Clock,
    metrics: Metrics,
    waiting_for: Arc<Mutex<String>>,
) -> Pages {
    let turned = seen.clone();
    Pages {
        loop_age: Arc::new(move || turned.borrow().at.map(|at| clock.now().since(at))),
        unready: Arc::new(move || {
            let snapshot = seen.borrow();
            if snapshot.at.is_none() {
                return vec![
                    waiting_for
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone(),
                ];
            }
            snapshot.unready(clock.now())
        }),
        metrics,
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
