//! A stand-in for Supabase Realtime, for development and tests. **Not for production.**
//!
//! It speaks the Phoenix channel protocol, versions 1.0.0 and 2.0.0, and sends `postgres_changes` read from logical decoding
//! (`pgoutput`), with the frames, the order of frames, the messages and the payloads of the real server (v2.129). It differs on
//! purpose: it polls more often, has no rate limits, retries Postgres without limit, and does not evaluate row security
//! policies (a table with row security sends only deletes to roles that do not bypass it). Filters, column selections,
//! broadcasts from clients and presence are refused by name. Broadcasts from the database reach private channels and TRUNCATE
//! is not sent, as on the real server.
//!
//! Owns starting and stopping, and all tasks: the listener, the reader of changes, one task per client. The handshake is in
//! `handshake.rs`, the protocol in `session.rs`, the routing of rows in `changes.rs`.
//!
//! Invariants: no task outlives [`RealtimeServer::stop`] or [`RealtimeServer::kill`]; dropping a server ends its tasks.

mod binding;
mod broadcast;
mod changes;
mod connection;
mod faults;
mod frame;
mod handshake;
mod options;
mod payload;
mod push;
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

pub use self::faults::{Deafness, EventFault, Faults, Refusal, ServerCounts, Severance};
pub use self::options::{RealtimeLimits, RealtimeOptions};
use self::{
    changes::{ChangeReader, REQUEST_QUEUE},
    connection::ServerContext,
};

/// Connections at once, including those that will be refused.
const MAX_CONNECTIONS: usize = 1_024;

/// The pause after the listener failed, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running server; see the module.
pub struct RealtimeServer {
    options: Arc<RealtimeOptions>,
    addr: SocketAddr,
    faults: Faults,
    running: Option<Running>,
}

struct Running {
    stop: DropGuard,
    tasks: TaskTracker,
}

impl RealtimeServer {
    /// Starts to listen. The database may be unavailable at first.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(options: RealtimeOptions) -> anyhow::Result<Self> {
        let faults = Faults::new();
        let options = Arc::new(options);
        let (addr, running) = listen(options.listen, &options, &faults).await?;
        tracing::info!("Realtime stand-in listens on {addr}");
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

    /// The project URL for Supabase clients.
    pub fn supabase_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The switches for fault injection.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Stops as on SIGTERM: clients are closed with 1012. Returns when all tasks have ended.
    pub async fn stop(&mut self) {
        self.end(Severance::Restart).await;
    }

    /// Stops as on SIGKILL: clients are reset. Returns when all tasks have ended.
    pub async fn kill(&mut self) {
        self.end(Severance::Abrupt).await;
    }

    /// Starts again after a stop, on the same port; does nothing to a running server.
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
    options: &Arc<RealtimeOptions>,
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
    let changes = ChangeReader::new(Arc::clone(options), faults.clone(), receiver);
    tasks.spawn(stop.clone().run_until_cancelled_owned(changes.run()));
    let context = ServerContext {
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
    context: ServerContext,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let seats = Arc::new(Semaphore::new(context.options.limits.clients));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // In this order: a stop from here on is either received by `severed` or seen below.
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
