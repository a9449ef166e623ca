//! Attackers: from another origin, with a forged host name, endless bodies, thousands of connections, guessed tokens, or who never
//! read. They are refused, everybody else is answered, and the distributions stay on their curves.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use uuid::Uuid;
use visit_pacer::domain::secret::Secret;
use visit_pacer::web::token::{COOKIE_SECONDS, cookie};
use visit_pacer::web::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS};

use super::dashboard::{TOKEN, Visitor, agent_with};
use crate::harness::{Agent, PATIENCE, Place, wait_until};

const FORM: &str = "application/x-www-form-urlencoded";
/// The body that an attacker sends, in chunks of a mebibyte.
const CHUNKS: usize = 1_024;

#[tokio::test]
async fn requests_of_another_origin_or_of_endless_size_are_refused_and_the_row_stays_on_its_curve()
{
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "40 a second", "null").await;
    place.has_stored(row, 10).await;
    let pause = format!("/api/distributions/{row}/pause");
    let other_origin = Visitor::of(&agent).with("origin", "http://evil.test");
    assert_eq!(
        other_origin.post(&pause, json!({})).await.0,
        StatusCode::FORBIDDEN
    );
    let form = Visitor::of(&agent);
    let (status, _) = form.send(Method::POST, &pause, "text/plain", "{}").await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let forged = Visitor::of(&agent).with("host", "evil.test");
    assert_eq!(
        forged.get("/api/snapshot").await.0,
        StatusCode::MISDIRECTED_REQUEST
    );
    let page = form.client.get(&form.base).send().await.expect("the page");
    let policy = page.headers()["content-security-policy"].to_str();
    let policy = policy.expect("text");
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );

    let chunk = vec![b' '; 1 << 20];
    let flood = stream::iter((0..CHUNKS).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let sent = form
        .client
        .post(format!("{}{pause}", form.base))
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(flood))
        .send()
        .await;
    let refused = sent.map_or(true, |answer| {
        answer.status() == StatusCode::PAYLOAD_TOO_LARGE
    });
    assert!(refused, "a body of a gibibyte is not taken");

    place.agents_work_for(3).await;
    assert_eq!(place.seconds_off_the_curve(row).await, Vec::<String>::new());
    place.ledger_is_sound(row).await;
}

/// Connections that the attacker keeps open.
const CROWD: u16 = 10_000;
/// Addresses that the attacker comes from.
const CROWD_ADDRESSES: u16 = 8;
/// How often one of them is replaced.
const CROWD_RENEWED_EVERY: Duration = Duration::from_millis(5);
/// Other files of this process.
const OTHER_FILES: u64 = 1_000;
/// Other descriptors of an agent that may come and go.
const DESCRIPTORS_BESIDE: usize = 16;
/// Visits that are stored while the attack lasts.
const VISITS_DURING: i64 = 200;

/// Connections that send nothing.
struct IdleConnections {
    target: SocketAddr,
    held: VecDeque<TcpStream>,
    opened: u16,
}

impl IdleConnections {
    async fn open(&mut self) {
        self.opened = self.opened.wrapping_add(1);
        let [_, last] = (2 + self.opened % CROWD_ADDRESSES).to_be_bytes();
        let socket = TcpSocket::new_v4().expect("a file for it");
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .expect("a port");
        let connected = tokio::time::timeout(PATIENCE, socket.connect(self.target)).await;
        let connected = connected.expect("taken").expect("taken");
        self.held.push_back(connected);
    }

    /// Replaces the oldest by new ones, for ever.
    async fn renew(&mut self) {
        loop {
            tokio::time::sleep(CROWD_RENEWED_EVERY).await;
            self.open().await;
            self.held.pop_front();
        }
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_prevent_no_answer_and_keep_no_row_from_its_curve() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let row = place.insert(1_000_000, "40 a second", "null").await;
    place.has_stored(row, 10).await;
    let url = format!("http://{}/api/events", agent.address());
    let script = script(&agent);
    let events = script.client.get(url).bearer_auth(TOKEN);
    let mut events = events.send().await.expect("a stream");
    let before = descriptors(&agent);

    let mut idle = IdleConnections {
        target: agent.address(),
        held: VecDeque::new(),
        opened: 0,
    };
    let fills = async {
        for _ in 0..may_hold(CROWD) {
            idle.open().await;
        }
    };
    tokio::time::timeout(3 * PATIENCE, fills)
        .await
        .expect("every connection is taken");
    let held = idle.held.len();
    println!("{held} connections held, {before} descriptors of the agent before them");
    assert!(held >= 4 * CONNECTIONS_MAX, "{held}");
    let stored = place.stored(row).await;
    let asked = async {
        let mut asked = 0;
        let mut most = 0;
        wait_until("the row makes progress", PATIENCE, async || {
            let answers = tokio::time::timeout(PATIENCE, async {
                for path in ["/healthz", "/readyz"] {
                    assert_eq!(agent.get(path).await.0, 200, "{path}");
                }
                script.snapshot().await;
            });
            answers.await.expect("an answer in time");
            asked += 3;
            most = most.max(descriptors(&agent));
            place.stored(row).await >= stored + VISITS_DURING
        })
        .await;
        println!("{asked} answers, at most {most} descriptors");
        let held = usize::from(CROWD_ADDRESSES) * CONNECTIONS_PER_ADDRESS;
        assert!(
            most >= held,
            "the idle connections use all that one address may have: {most}"
        );
        assert!(
            most <= before + CONNECTIONS_MAX + DESCRIPTORS_BESIDE,
            "{most} descriptors"
        );
        is_on_its_curve(&place, row).await;
        let new = place.insert(1_000_000, "1 a second", "null").await;
        receives(&mut events, &new.to_string()).await;
    };
    tokio::select! {
        () = idle.renew() => unreachable!("it never ends"),
        () = asked => {}
    }

    drop(idle);
    place.agents_work_for(3).await;
    is_on_its_curve(&place, row).await;
    place.ledger_is_sound(row).await;
}

/// A program with the token that opens a connection for each request.
fn script(agent: &Agent) -> Visitor {
    Visitor::of(agent)
        .with("authorization", format!("Bearer {TOKEN}"))
        .with("connection", "close")
}

/// Waits until the stream has sent these words.
async fn receives(events: &mut reqwest::Response, words: &str) {
    let mut text = String::new();
    wait_until(format!("the stream sends {words}"), PATIENCE, async || {
        let chunk = tokio::time::timeout(PATIENCE, events.chunk()).await;
        let chunk = chunk.expect("in time").expect("the stream is open");
        text.push_str(&String::from_utf8_lossy(&chunk.expect("no end")));
        text.contains(words)
    })
    .await;
}

/// Waits until a distribution was on its curve at every second.
async fn is_on_its_curve(place: &Place, row: Uuid) {
    wait_until("the row is on its curve", PATIENCE, async || {
        place.seconds_off_the_curve(row).await.is_empty()
    })
    .await;
}

/// Files that the agent's process has open.
fn descriptors(agent: &Agent) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()));
    open.expect("our child").count()
}

/// That many sockets, or as many as this process may open.
fn may_hold(sockets: u16) -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let wanted = (u64::from(sockets) + OTHER_FILES).min(hard);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("a higher limit");
    }
    wanted
        .max(soft)
        .saturating_sub(OTHER_FILES)
        .min(sockets.into())
}

/// More than the agent serves at once.
const HALF_REQUESTS: usize = 300;

#[tokio::test]
async fn requests_whose_bodies_never_end_are_closed_and_prevent_no_answer() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let half = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=a";
    let mut held = Vec::new();
    for _ in 0..HALF_REQUESTS {
        let socket = TcpSocket::new_v4().expect("a file for it");
        let attacker = SocketAddr::from(([127, 0, 0, 2], 0));
        socket.bind(attacker).expect("a port");
        let mut connection = socket.connect(agent.address()).await.expect("taken");
        // Beyond its limit the agent closes them at once.
        connection.write_all(half.as_bytes()).await.ok();
        held.push(connection);
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(agent.get(path).await.0, 200, "{path}");
    }
    let mut answer = String::new();
    let first = held.first_mut().expect("connections");
    let answered = tokio::time::timeout(PATIENCE, first.read_to_string(&mut answer)).await;
    answered.expect("closed in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// Their list is larger than the buffers of the kernel.
const ROWS: i64 = 4_000;
/// The receive buffer of a peer that does not read.
const TAKEN: u32 = 4 * 1024;

#[tokio::test]
async fn a_peer_that_never_reads_an_answer_or_the_events_is_disconnected() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.row().with("is_active", "false").times(ROWS);
    place.insert_rows(&row).await;
    let visitor = Visitor::of(&agent);
    wait_until("the snapshot has all distributions", PATIENCE, async || {
        let rows = &visitor.snapshot().await["distributions"];
        i64::try_from(rows.as_array().map_or(0, Vec::len)) == Ok(ROWS)
    })
    .await;
    let size = visitor.get("/api/snapshot").await.1.len();
    println!("a snapshot of {size} bytes");
    for path in ["/api/snapshot", "/api/events"] {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(TAKEN).expect("a size");
        let mut connection = socket.connect(agent.address()).await.expect("taken");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        connection
            .write_all(request.as_bytes())
            .await
            .expect("sent");
        assert!(has_other_end(&connection));
        wait_until(format!("{path} is disconnected"), PATIENCE, async || {
            !has_other_end(&connection)
        })
        .await;
    }
    assert_eq!(agent.get("/readyz").await.0, 200);
}

/// Whether the kernel still has the agent's end of this connection.
fn has_other_end(connection: &TcpStream) -> bool {
    let port = |address: std::io::Result<SocketAddr>| address.expect("a socket").port();
    let ours = format!(":{:04X}", port(connection.local_addr()));
    let theirs = format!(":{:04X}", port(connection.peer_addr()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (fields.next(), fields.next());
        local.is_some_and(|local| local.ends_with(&theirs))
            && remote.is_some_and(|remote| remote.ends_with(&ours))
    })
}

/// More guesses than one address has in a minute.
const GUESSES: usize = 20;

#[tokio::test]
async fn an_address_that_guesses_tokens_is_blocked_and_no_other() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let attacker = Visitor::at(Ipv4Addr::new(127, 0, 0, 2), &agent);
    for _ in 0..GUESSES {
        attacker
            .send(Method::POST, "/login", FORM, "token=another")
            .await;
    }
    let right = format!("token={TOKEN}");
    let (status, _) = attacker
        .send(Method::POST, "/login", FORM, right.clone())
        .await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let visitor = Visitor::of(&agent);
    let (status, _) = visitor.send(Method::POST, "/login", FORM, right).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    script(&agent).snapshot().await;
}

#[tokio::test]
async fn a_cookie_older_than_a_login_is_refused() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    for (issued, status) in [
        (now, StatusCode::OK),
        (now - COOKIE_SECONDS, StatusCode::UNAUTHORIZED),
    ] {
        let cookie = cookie(&Secret::new(TOKEN), issued);
        let visitor = Visitor::of(&agent).with("cookie", format!("visit_pacer={cookie}"));
        assert_eq!(visitor.get("/api/snapshot").await.0, status);
    }
}
