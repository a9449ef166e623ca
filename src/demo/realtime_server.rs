//! A stand-in for Supabase Realtime, for development and tests. **Not for production.**
//!
//! It speaks the Phoenix channel protocol, versions 1.0.0 and 2.0.0, and sends `postgres_changes`
//! read from logical decoding (`pgoutput`), with the frames, the order of frames, the messages and
//! the payloads of the real server (v2.129). It differs on purpose: it polls more often, has no
//! rate limits, gives up on Postgres never, does not evaluate row security policies (a table with
//! row security shows deletes only to roles that do not bypass it), and has neither
//! broadcasts from clients, nor presence: those are refused by name. Broadcasts from the database
//! reach private channels, as there. TRUNCATE is not sent, as there.
//!
//! Owns starting and stopping, and all tasks: the listener, the reader of changes, one task a
//! client. Who it serves is decided in `handshake.rs`, what is said in `session.rs`, who sees which
//! row in `changes.rs`.
//!
//! Invariants: no task outlives [`RealtimeServer::stop`] or [`RealtimeServer::kill`]; a server that
//! is dropped ends its tasks by itself.

mod binding;
mod broadcast;
mod changes;
mod connection;
mod faults;
mod frame;
mod handshake;
mod outbox;
mod payload;
mod session;
mod slot;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use self::faults::{Counts, Deafness, EventFault, Faults, Refusal, Severance};
use self::{
    changes::{Changes, REQUEST_QUEUE},
    connection::Context,
};
use crate::domain::secret::Secret;

/// Connections at once, with those that are still to be refused.
const MAX_CONNECTIONS: usize = 1_024;

/// The pause after the listener failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the server is to run.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 is any free one.
    pub listen: SocketAddr,
    /// The database, as a superuser or a role with `REPLICATION`; `wal_level` must be `logical`.
    pub database_url: Secret,
    /// The secret of the keys and tokens that are JWTs.
    pub jwt_secret: Secret,
    /// Opaque keys (`sb_secret_…`) that count as `service_role`.
    pub extra_keys: Vec<Secret>,
    /// The publication whose tables can be subscribed to. It may come later than the server.
    pub publication: String,
    /// How long a refused connect waits for its answer; 2 s on the real server.
    pub refusal_delay: Duration,
    /// Bounds, and the other times.
    pub limits: Limits,
}

/// Bounds and times that only tests have a reason to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients at once: the real server's `max_concurrent_users`.
    pub clients: usize,
    /// Channels of one client: the real server's `max_channels_per_client`.
    pub channels: usize,
    /// A client that sends nothing for this long is closed.
    pub idle_timeout: Duration,
    /// A client that reads nothing for this long is dropped.
    pub send_timeout: Duration,
    /// How long a refused join holds the socket; 5 s on the real server.
    pub join_refusal_delay: Duration,
    /// How often the published tables are looked at for changes.
    pub publication_check: Duration,
    /// How long a connection with an opaque key may last; 24 h on Supabase.
    pub opaque_key_life: Duration,
    /// How often messages that are older than three days are deleted; the real server drops a day's partition.
    pub cleaning: Duration,
}

impl Options {
    /// What the demo uses: the publication `supabase_realtime`, refusals without delay.
    pub fn new(listen: SocketAddr, database_url: impl Into<String>, jwt_secret: Secret) -> Self {
        Self {
            listen,
            database_url: Secret::new(database_url),
            jwt_secret,
            extra_keys: Vec::new(),
            publication: "supabase_realtime".to_owned(),
            refusal_delay: Duration::ZERO,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 200,
            channels: 100,
            idle_timeout: Duration::from_mins(1),
            send_timeout: Duration::from_secs(30),
            join_refusal_delay: Duration::ZERO,
            publication_check: Duration::from_mins(1),
            opaque_key_life: Duration::from_hours(24),
            cleaning: Duration::from_hours(24),
        }
    }
}

/// A running server; see the module.
pub struct RealtimeServer {
    options: Arc<Options>,
    addr: SocketAddr,
    faults: Faults,
    running: Option<Running>,
}

struct Running {
    stop: DropGuard,
    tasks: TaskTracker,
}

impl RealtimeServer {
    /// Starts to listen. The database need not be there yet.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let faults = Faults::new();
        let options = Arc::new(options);
        let (addr, running) = listen(options.listen, &options, &faults).await?;
        tracing::info!("Realtime, a stand-in for development, listens on {addr}");
        Ok(Self {
            options,
            addr,
            faults,
            running: Some(running),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The WebSocket URL, without query.
    pub fn url(&self) -> String {
        format!("ws://{}/socket/websocket", self.addr)
    }

    /// The URL that Supabase clients build theirs from.
    pub fn supabase_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The switches for tests.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Stops as on SIGTERM: clients are closed with 1012. Ends when no task is left.
    pub async fn stop(&mut self) {
        self.end(Severance::Restart).await;
    }

    /// Stops as on SIGKILL: clients are reset. Ends when no task is left.
    pub async fn kill(&mut self) {
        self.end(Severance::Abrupt).await;
    }

    /// Starts again after a stop, on the same port; a running server goes on.
    ///
    /// # Errors
    /// When the port has been taken meanwhile.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            let (_, running) = listen(self.addr, &self.options, &self.faults).await?;
            self.running = Some(running);
        }
        Ok(())
    }

    async fn end(&mut self, severance: Severance) {
        let Some(Running { stop, tasks }) = self.running.take() else {
            return;
        };
        drop(stop);
        tasks.close();
        self.faults.drop_connections(severance);
        tasks.wait().await;
        self.faults.count_subscribers(0);
    }
}

impl Drop for RealtimeServer {
    fn drop(&mut self) {
        self.faults.drop_connections(Severance::Abrupt);
    }
}

async fn listen(
    addr: SocketAddr,
    options: &Arc<Options>,
    faults: &Faults,
) -> anyhow::Result<(SocketAddr, Running)> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("the Realtime stand-in cannot listen on {addr}; is it taken?"))?;
    let addr = listener
        .local_addr()
        .context("the listener has no address")?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (requests, receiver) = mpsc::channel(REQUEST_QUEUE);
    let changes = Changes::new(Arc::clone(options), faults.clone(), receiver);
    tasks.spawn(stop.clone().run_until_cancelled_owned(changes.run()));
    let context = Context {
        options: Arc::clone(options),
        faults: faults.clone(),
        requests,
    };
    let accepting = accept(listener, context, tasks.clone(), stop.clone());
    tasks.spawn(stop.clone().run_until_cancelled_owned(accepting));
    Ok((
        addr,
        Running {
            stop: stop.drop_guard(),
            tasks,
        },
    ))
}

async fn accept(
    listener: TcpListener,
    context: Context,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let seats = Arc::new(Semaphore::new(context.options.limits.clients));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // In this order: who is not severed by a stop from here on sees it below.
        let severed = context.faults.severed();
        if stop.is_cancelled() {
            return;
        }
        if context.faults.refusal() == Some(Refusal::Reset) || tasks.len() > MAX_CONNECTIONS {
            drop(stream.set_zero_linger());
            continue;
        }
        let seat = Arc::clone(&seats).try_acquire_owned().ok();
        tasks.spawn(connection::serve(stream, context.clone(), seat, severed));
    }
}
