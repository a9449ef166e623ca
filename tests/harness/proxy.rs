//! A TCP proxy between a client and Postgres that breaks in every way a network does, switched while it runs.
//!
//! Owns the sockets and their faults: what a [`Line`] does to the bytes, cuts at random bytes, answers that are lost after
//! their commit, refused connects, and another server to lead to. It knows two things of the protocol: a client's statement is
//! recognised by its text, and a whole answer by the `ReadyForQuery` at its end, that of a COMMIT or of a statement alone.
//!
//! Invariants: a connection never passes a byte after one that it swallowed, as behind a router that has forgotten it; what
//! is random follows from the seed and the order of connects; no task outlives the [`Proxy`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Connections at once; further ones are refused.
const CONNECTIONS_MAX: usize = 256;
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// A slow line passes so many portions a second.
const PORTIONS_A_SECOND: u32 = 20;
/// The one write.
const STATEMENT: &[u8] = b"visit_pacer_store";
/// How a server says that it has answered, outside a transaction.
const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
/// How it says that a statement has returned rows, outside a transaction: it was committed.
const COMMAND_COMPLETE: &[u8] = b"SELECT ";
/// How it says that the transaction around a statement was committed.
const COMMITTED: &[u8] = b"COMMIT\0";

/// One way through a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// What the client says.
    ToServer,
    /// What the server says.
    ToClient,
}

/// What happens to the bytes of every connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// They pass.
    Passes,
    /// One way swallows them without a word; the sockets stay open.
    HalfOpen(Transport),
    /// Both ways do.
    Dead,
    /// So many bytes a second pass, each way of each connection.
    Slow(u32),
    /// Every chunk comes later.
    Late(Duration),
}

/// How often what has happened.
#[derive(Default)]
pub struct Happened {
    /// Connections that were led to a server.
    pub connections: AtomicU64,
    /// Connections that were reset.
    pub cuts: AtomicU64,
    /// … of those, after a committed statement's answer was swallowed.
    pub answers_lost: AtomicU64,
    /// Connections that have lost a byte without a word.
    pub swallowed: AtomicU64,
    /// Connects that were reset at once.
    pub refused: AtomicU64,
}

/// A proxy on a port of its own.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Rules {
    target: SocketAddr,
    line: Line,
    admits: bool,
    /// Each connection is cut within so many bytes of one of its ways.
    cut_within: Option<u64>,
    /// Connections that were made before the last change of this are cut.
    cuts: u64,
}

#[derive(Default)]
struct Shared {
    happened: Happened,
    /// Answers still to be lost.
    to_lose: AtomicU64,
}

impl Proxy {
    /// Leads to a port of 127.0.0.1.
    pub async fn to(port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port of its own");
        let address = listener.local_addr().expect("it is bound");
        let (rules, seen) = watch::channel(Rules {
            target: SocketAddr::from(([127, 0, 0, 1], port)),
            line: Line::Passes,
            admits: true,
            cut_within: None,
            cuts: 0,
        });
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen, Arc::clone(&shared), seed));
        Self {
            address,
            rules,
            shared,
            _tasks: tasks,
        }
    }

    /// A database's URL, by way of the proxy.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).expect("a URL");
        url.set_port(Some(self.address.port())).expect("a host");
        url.into()
    }

    /// What happened so far.
    pub fn happened(&self) -> &Happened {
        &self.shared.happened
    }

    /// From now on the bytes fare like this.
    pub fn line(&self, line: Line) {
        self.rules.send_modify(|rules| rules.line = line);
    }

    /// Resets every connection, now.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Resets every connection, and each later one within so many bytes of one of its ways: in the middle of a statement,
    /// or of an answer. `None` ends that for connections that are made from now on.
    pub fn cut_within(&self, bytes: Option<u64>) {
        self.rules.send_modify(|rules| {
            rules.cut_within = bytes;
            rules.cuts += u64::from(bytes.is_some());
        });
    }

    /// The next so many answers to the one write are lost, and their connections reset, after the server has committed.
    pub fn lose_answers(&self, answers: u64) {
        self.shared.to_lose.store(answers, Ordering::Relaxed);
    }

    /// Whether connects are let in; others are reset at once.
    pub fn admit(&self, admits: bool) {
        self.rules.send_modify(|rules| rules.admits = admits);
    }

    /// Later connections lead to this port of 127.0.0.1.
    pub fn retarget(&self, port: u16) {
        self.rules.send_modify(|rules| rules.target.set_port(port));
    }
}

/// Where a connection ended.
enum End {
    /// One side said goodbye.
    Closed,
    /// It is to be reset.
    Cut,
    /// One side said goodbye to a line that swallows: the other does not hear of it.
    Unheard,
}

async fn accept(
    listener: TcpListener,
    rules: watch::Receiver<Rules>,
    shared: Arc<Shared>,
    seed: u64,
) {
    let mut dice = Pcg32::seed_from_u64(seed);
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let now = rules.borrow().clone();
        if !now.admits || connections.len() >= CONNECTIONS_MAX {
            shared.happened.refused.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            continue;
        }
        let cut_at = now.cut_within.map(|bytes| {
            let transport =
                [Transport::ToServer, Transport::ToClient][usize::from(dice.random_bool(0.5))];
            (transport, dice.random_range(1..=bytes))
        });
        connections.spawn(carry(client, rules.clone(), Arc::clone(&shared), cut_at));
    }
}

/// Without a goodbye: both sides see `ECONNRESET`, and what was not yet read is lost.
fn reset(stream: &TcpStream) {
    // A socket that has gone by itself needs no reset.
    let _set = stream.set_zero_linger().is_ok();
}

async fn carry(
    mut client: TcpStream,
    mut rules: watch::Receiver<Rules>,
    shared: Arc<Shared>,
    cut_at: Option<(Transport, u64)>,
) {
    let now = rules.borrow().clone();
    let Ok(mut server) = TcpStream::connect(now.target).await else {
        reset(&client);
        return;
    };
    shared.happened.connections.fetch_add(1, Ordering::Relaxed);
    // Small messages as they come; a socket that refuses this is as good.
    let _set = (
        client.set_nodelay(true).is_ok(),
        server.set_nodelay(true).is_ok(),
    );
    let stores = AtomicBool::new(false);
    let end = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let pump = |transport, from, to| Pump {
            transport,
            from,
            to,
            rules: rules.clone(),
            shared: &shared,
            left: cut_at
                .filter(|(cut, _)| *cut == transport)
                .map(|(_, bytes)| bytes),
            stores: &stores,
        };
        let to_server = pump(Transport::ToServer, client_read, server_write);
        let to_client = pump(Transport::ToClient, server_read, client_write);
        let mut cuts = rules.clone();
        tokio::select! {
            end = to_server.run() => end,
            end = to_client.run() => end,
            _ = cuts.wait_for(|rules| rules.cuts != now.cuts) => End::Cut,
        }
    };
    match end {
        End::Closed => {}
        End::Cut => {
            shared.happened.cuts.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            reset(&server);
        }
        // The proxy is gone when this fails.
        End::Unheard => {
            let _healed = rules
                .wait_for(|rules| rules.line == Line::Passes || rules.cuts != now.cuts)
                .await
                .is_ok();
        }
    }
}

/// One way of one connection.
struct Pump<'a> {
    transport: Transport,
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    rules: watch::Receiver<Rules>,
    shared: &'a Shared,
    /// Bytes that still pass before the cut.
    left: Option<u64>,
    /// Whether the client has named [`STATEMENT`]: once for all, or, where each call is a transaction, for the one at hand.
    stores: &'a AtomicBool,
}

impl Pump<'_> {
    async fn run(mut self) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut lost = false;
        loop {
            let most = match self.rules.borrow().line {
                Line::Slow(bytes) => usize::try_from(bytes / PORTIONS_A_SECOND)
                    .unwrap_or(1)
                    .max(1),
                Line::Passes | Line::HalfOpen(_) | Line::Dead | Line::Late(_) => CHUNK_BYTES,
            };
            let room = &mut chunk[..most.min(CHUNK_BYTES)];
            let bytes = match self.from.read(room).await {
                Ok(0) | Err(_) if lost => return End::Unheard,
                Ok(0) => return End::Closed,
                Err(_reset) => return End::Cut,
                Ok(read) => &chunk[..read],
            };
            let line = self.rules.borrow().line;
            match line {
                Line::Passes => {}
                Line::Dead => lost = self.swallowed(lost),
                Line::HalfOpen(transport) if transport == self.transport => {
                    lost = self.swallowed(lost);
                }
                Line::HalfOpen(_) => {}
                Line::Slow(_) => sleep(Duration::from_secs(1) / PORTIONS_A_SECOND).await,
                Line::Late(by) => sleep(by).await,
            }
            if lost {
                continue;
            }
            if self.transport == Transport::ToClient && self.loses(bytes) {
                return End::Cut;
            }
            let passes = self.passes(bytes);
            if self.to.write_all(&bytes[..passes]).await.is_err() || passes < bytes.len() {
                return End::Cut;
            }
        }
    }

    fn swallowed(&self, already: bool) -> bool {
        let happened = &self.shared.happened;
        happened
            .swallowed
            .fetch_add(u64::from(!already), Ordering::Relaxed);
        true
    }

    /// How many of the bytes pass before the cut.
    fn passes(&mut self, bytes: &[u8]) -> usize {
        if self.transport == Transport::ToServer && contains(bytes, STATEMENT) {
            self.stores.store(true, Ordering::Relaxed);
        }
        let Some(left) = &mut self.left else {
            return bytes.len();
        };
        let passes = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        *left -= u64::try_from(passes).unwrap_or(*left);
        passes
    }

    /// Whether this is an answer that is to be lost, at its end: the transaction is committed then.
    fn loses(&self, bytes: &[u8]) -> bool {
        let transaction = contains(bytes, COMMITTED);
        let whole =
            bytes.ends_with(READY_FOR_QUERY) && (transaction || contains(bytes, COMMAND_COMPLETE));
        if !self.stores.load(Ordering::Relaxed) || !whole {
            return false;
        }
        self.stores.store(!transaction, Ordering::Relaxed);
        let less = |answers: u64| answers.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let lost = self.shared.to_lose.fetch_update(set, fetch, less).is_ok();
        let happened = &self.shared.happened;
        happened
            .answers_lost
            .fetch_add(u64::from(lost), Ordering::Relaxed);
        lost
    }
}

fn contains(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}
