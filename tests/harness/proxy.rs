//! A TCP proxy between a client and Postgres that breaks in every way a network does, switched while it runs.
//!
//! Owns the sockets and their faults: what a [`Line`] does to the bytes, cuts at random bytes, answers lost after their commit,
//! refused connects, and a change of the server. It knows two things of the protocol: a statement of a client is recognised by its
//! text, and a complete answer by the `ReadyForQuery` at its end, after a COMMIT or a single statement.
//!
//! Invariants: a connection passes no byte after one that it swallowed, like a router that has dropped its entry; randomness
//! follows from the seed and the order of connects; no task outlives the [`Proxy`].

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
/// A slow line passes that many portions a second.
const PORTIONS_A_SECOND: u32 = 20;
/// The one write.
const STATEMENT: &[u8] = b"visit_pacer_store";
/// The end of an answer outside a transaction.
const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
/// A statement that returned rows; outside a transaction it is committed.
const COMMAND_COMPLETE: &[u8] = b"SELECT ";
/// A transaction around a statement was committed.
const COMMITTED: &[u8] = b"COMMIT\0";

/// A direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
}

/// What happens to the bytes of every connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// They pass.
    Passes,
    /// One direction swallows them; the sockets stay open.
    HalfOpen(Direction),
    /// Both directions do.
    Dead,
    /// That many bytes a second pass, in each direction of each connection.
    Slow(u32),
    /// Every chunk is delayed.
    Late(Duration),
}

/// Counts of what happened.
#[derive(Default)]
pub struct Happened {
    /// Connections made to a server.
    pub connections: AtomicU64,
    /// Connections that were reset.
    pub cuts: AtomicU64,
    /// … of those, after a committed statement's answer was swallowed.
    pub answers_lost: AtomicU64,
    /// Connections that swallowed a byte.
    pub swallowed: AtomicU64,
    /// Connects that were refused.
    pub refused: AtomicU64,
}

/// A proxy on a port of its own.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    shared: Arc<ProxyState>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Rules {
    target: SocketAddr,
    line: Line,
    admits: bool,
    /// Each connection is cut within that many bytes of one of its directions.
    cut_within: Option<u64>,
    /// Connections that were made before the last change of this are cut.
    cuts: u64,
}

#[derive(Default)]
struct ProxyState {
    happened: Happened,
    /// Answers still to be lost.
    to_lose: AtomicU64,
}

impl Proxy {
    /// To a port of 127.0.0.1.
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
        let shared = Arc::new(ProxyState::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen, Arc::clone(&shared), seed));
        Self {
            address,
            rules,
            shared,
            _tasks: tasks,
        }
    }

    /// The URL of a server, through the proxy.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).expect("a URL");
        url.set_port(Some(self.address.port())).expect("a host");
        url.into()
    }

    /// Counts of what happened so far.
    pub fn happened(&self) -> &Happened {
        &self.shared.happened
    }

    /// Changes what happens to the bytes.
    pub fn line(&self, line: Line) {
        self.rules.send_modify(|rules| rules.line = line);
    }

    /// Resets every connection, now.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Resets every connection, and each later one within that many bytes of one of its directions: within a statement or an
    /// answer. `None` ends that for later connections.
    pub fn cut_within(&self, bytes: Option<u64>) {
        self.rules.send_modify(|rules| {
            rules.cut_within = bytes;
            rules.cuts += u64::from(bytes.is_some());
        });
    }

    /// Loses that many answers to the write, and resets their connections, after the server has committed.
    pub fn lose_answers(&self, answers: u64) {
        self.shared.to_lose.store(answers, Ordering::Relaxed);
    }

    /// Whether connects are accepted or reset.
    pub fn admit(&self, admits: bool) {
        self.rules.send_modify(|rules| rules.admits = admits);
    }

    /// Later connections are made to this port of 127.0.0.1.
    pub fn retarget(&self, port: u16) {
        self.rules.send_modify(|rules| rules.target.set_port(port));
    }
}

/// How a connection ended.
enum PipeEnd {
    /// One side closed it.
    Closed,
    /// It is to be reset.
    Cut,
    /// One side closed a line that swallows; the other does not notice.
    Unheard,
}

async fn accept(
    listener: TcpListener,
    rules: watch::Receiver<Rules>,
    shared: Arc<ProxyState>,
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
            let direction =
                [Direction::ToServer, Direction::ToClient][usize::from(dice.random_bool(0.5))];
            (direction, dice.random_range(1..=bytes))
        });
        connections.spawn(carry(client, rules.clone(), Arc::clone(&shared), cut_at));
    }
}

/// Both sides get `ECONNRESET`, and what was not read yet is lost.
fn reset(stream: &TcpStream) {
    // A closed socket needs no reset.
    let _set = stream.set_zero_linger().is_ok();
}

async fn carry(
    mut client: TcpStream,
    mut rules: watch::Receiver<Rules>,
    shared: Arc<ProxyState>,
    cut_at: Option<(Direction, u64)>,
) {
    let now = rules.borrow().clone();
    let Ok(mut server) = TcpStream::connect(now.target).await else {
        reset(&client);
        return;
    };
    shared.happened.connections.fetch_add(1, Ordering::Relaxed);
    // Small messages without delay. A socket that refuses this works too.
    let _set = (
        client.set_nodelay(true).is_ok(),
        server.set_nodelay(true).is_ok(),
    );
    let stores = AtomicBool::new(false);
    let end = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let pump = |direction, from, to| Pump {
            direction,
            from,
            to,
            rules: rules.clone(),
            shared: &shared,
            left: cut_at
                .filter(|(cut, _)| *cut == direction)
                .map(|(_, bytes)| bytes),
            stores: &stores,
        };
        let to_server = pump(Direction::ToServer, client_read, server_write);
        let to_client = pump(Direction::ToClient, server_read, client_write);
        let mut cuts = rules.clone();
        tokio::select! {
            end = to_server.run() => end,
            end = to_client.run() => end,
            _ = cuts.wait_for(|rules| rules.cuts != now.cuts) => PipeEnd::Cut,
        }
    };
    match end {
        PipeEnd::Closed => {}
        PipeEnd::Cut => {
            shared.happened.cuts.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            reset(&server);
        }
        // This fails if the proxy is dropped.
        PipeEnd::Unheard => {
            let _healed = rules
                .wait_for(|rules| rules.line == Line::Passes || rules.cuts != now.cuts)
                .await
                .is_ok();
        }
    }
}

/// One direction of one connection.
struct Pump<'a> {
    direction: Direction,
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    rules: watch::Receiver<Rules>,
    shared: &'a ProxyState,
    /// Bytes before the cut.
    left: Option<u64>,
    /// Whether the client has named [`STATEMENT`]: once, or for the present transaction if each call is one.
    stores: &'a AtomicBool,
}

impl Pump<'_> {
    async fn run(mut self) -> PipeEnd {
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
                Ok(0) | Err(_) if lost => return PipeEnd::Unheard,
                Ok(0) => return PipeEnd::Closed,
                Err(_reset) => return PipeEnd::Cut,
                Ok(read) => &chunk[..read],
            };
            let line = self.rules.borrow().line;
            match line {
                Line::Passes => {}
                Line::Dead => lost = self.swallowed(lost),
                Line::HalfOpen(direction) if direction == self.direction => {
                    lost = self.swallowed(lost);
                }
                Line::HalfOpen(_) => {}
                Line::Slow(_) => sleep(Duration::from_secs(1) / PORTIONS_A_SECOND).await,
                Line::Late(by) => sleep(by).await,
            }
            if lost {
                continue;
            }
            if self.direction == Direction::ToClient && self.loses(bytes) {
                return PipeEnd::Cut;
            }
            let passes = self.passes(bytes);
            if self.to.write_all(&bytes[..passes]).await.is_err() || passes < bytes.len() {
                return PipeEnd::Cut;
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
        if self.direction == Direction::ToServer && contains(bytes, STATEMENT) {
            self.stores.store(true, Ordering::Relaxed);
        }
        let Some(left) = &mut self.left else {
            return bytes.len();
        };
        let passes = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        *left -= u64::try_from(passes).unwrap_or(*left);
        passes
    }

    /// Whether this is the end of an answer to be lost. Its transaction is committed.
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
