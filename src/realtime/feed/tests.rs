use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_async};

use super::*;
use crate::domain::error_policy::ErrorKind;
use crate::domain::secret::Secret;
use crate::realtime::failure::Down;
use crate::realtime::frame::Frame;
use crate::realtime::session::TOPIC;

const KEY: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl";
/// Longer than any wait of a test that passes; only a failure takes it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A feed that runs, its two channels, and the server that it dials.
struct FeedBench {
    listener: TcpListener,
    commands: mpsc::Sender<FeedCommand>,
    events: mpsc::Receiver<FeedEvent>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl FeedBench {
    async fn new(event_capacity: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let endpoint = Endpoint::new(&url, Secret::new(KEY)).expect("a valid endpoint");
        let bindings = vec![FollowedTable::new("public", "visit_distribution")];
        let (commands, command_queue) = mpsc::channel(4);
        let (event_queue, events) = mpsc::channel(event_capacity);
        let shutdown = CancellationToken::new();
        let config = FeedConfig {
            endpoint,
            bindings,
            broadcasts: false,
        };
        let task = tokio::spawn(run(config, command_queue, event_queue, shutdown.clone()));
        Self {
            listener,
            commands,
            events,
            shutdown,
            task,
        }
    }

    /// A feed that is live, and the server's end of its socket.
    async fn live() -> (Self, ServerSocket) {
        let mut bench = Self::new(64).await;
        let peer = bench.serve_live().await;
        assert_eq!(bench.event().await, FeedEvent::Live(Transport::Changes));
        (bench, peer)
    }

    async fn accept(&self) -> TcpStream {
        let (stream, _) = within(self.listener.accept()).await.expect("a connection");
        stream
    }

    /// Accepts a socket, its join, and confirms the subscription.
    async fn serve_live(&self) -> ServerSocket {
        let stream = accept_async(self.accept().await).await.expect("an upgrade");
        let mut peer = ServerSocket { stream };
        let join = peer.frame().await;
        assert_eq!(join.event, "phx_join");
        peer.confirm(&join.ref_.expect("a ref")).await;
        peer
    }

    async fn event(&mut self) -> FeedEvent {
        within(self.events.recv()).await.expect("the feed runs")
    }

    async fn down(&mut self) -> Down {
        match self.event().await {
            FeedEvent::Down(down) => down,
            other => panic!("expected Down, found {other:?}"),
        }
    }

    async fn ends(self) {
        within(self.task)
            .await
            .expect("the feed ends without a panic");
    }
}

/// The server's end of a socket.
struct ServerSocket {
    stream: WebSocketStream<TcpStream>,
}

impl ServerSocket {
    async fn message(&mut self) -> Message {
        within(self.stream.next())
            .await
            .expect("an open socket")
            .expect("a sound socket")
    }

    async fn frame(&mut self) -> Frame {
        let message = self.message().await;
        Frame::decode_text(message.to_text().expect("text")).expect("a frame")
    }

    async fn send(&mut self, message: Message) {
        within(self.stream.send(message))
            .await
            .expect("an open socket");
    }

    async fn confirm(&mut self, join: &str) {
        self.send(Message::text(format!(
            r#"["{join}","{join}","{TOPIC}","phx_reply",{{"status":"ok","response":{{
                "postgres_changes":[{{"id":1,"event":"*","schema":"public",
                                      "table":"visit_distribution"}}]}}}}]"#
        )))
        .await;
        self.send(Message::text(format!(
            r#"["{join}",null,"{TOPIC}","system",{{"status":"ok","extension":"postgres_changes",
                "message":"Subscribed to PostgreSQL","channel":"visit-pacer"}}]"#
        )))
        .await;
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it happens in time")
}

fn change(version: i64) -> Message {
    Message::text(format!(
        r#"[null,null,"{TOPIC}","postgres_changes",{{"data":{{"schema":"public",
            "table":"visit_distribution","type":"UPDATE","errors":null,"record":{{
            "id":"11111111-1111-1111-1111-111111111111","config_version":{version}}}}},
            "ids":[1]}}]"#
    ))
}

fn version(event: &FeedEvent) -> Option<i64> {
    match event {
        FeedEvent::Changed(change) => change.config_version,
        FeedEvent::Live(_) | FeedEvent::Broadcast(..) | FeedEvent::Down(_) | FeedEvent::Lost(_) => {
            None
        }
    }
}

#[tokio::test]
async fn it_goes_live_and_tells_changes_in_order() {
    let (mut bench, mut peer) = FeedBench::live().await;
    for number in 1..=50 {
        peer.send(change(number)).await;
    }
    for number in 1..=50 {
        assert_eq!(version(&bench.event().await), Some(number));
    }
}

#[tokio::test]
async fn garbage_binary_messages_and_pings_are_survived() {
    let (mut bench, mut peer) = FeedBench::live().await;
    peer.send(Message::text("")).await;
    peer.send(Message::text("not JSON")).await;
    peer.send(Message::text(r#"{"topic":1}"#)).await;
    peer.send(Message::binary(vec![])).await;
    peer.send(Message::binary(vec![4, 255, 255, 255, 1, 0]))
        .await;
    peer.send(Message::binary(vec![0xff; 70_000])).await;
    peer.send(Message::Ping(vec![1, 2, 3].into())).await;
    peer.send(change(7)).await;
    assert_eq!(version(&bench.event().await), Some(7));
    assert_eq!(peer.message().await, Message::Pong(vec![1, 2, 3].into()));
}

#[tokio::test]
async fn a_refused_key_is_told_in_plain_words_and_the_feed_goes_on() {
    let mut bench = FeedBench::new(64).await;
    let mut stream = bench.accept().await;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.expect("a whole request"));
    }
    let body = r#"{"error":"Failed to validate JWT signature"}"#;
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.expect("a reader");

    let down = bench.down().await;
    assert_eq!(down.failure.kind, ErrorKind::Key);
    let line = down.to_string();
    assert!(
        line.contains("HTTP 401: Failed to validate JWT signature"),
        "{line}"
    );
    assert!(line.contains("SUPABASE_SECRET_KEY"), "{line}");
    assert!(!line.contains(KEY), "{line}");
    bench.shutdown.cancel();
    bench.ends().await;
}

#[tokio::test]
async fn a_server_that_restarts_is_answered_and_followed_again_by_itself() {
    let (mut bench, mut peer) = FeedBench::live().await;
    let restart = CloseFrame {
        code: CloseCode::Restart,
        reason: "".into(),
    };
    peer.send(Message::Close(Some(restart.clone()))).await;
    assert_eq!(peer.message().await, Message::Close(Some(restart)));
    let _ = peer.stream.close(None).await;
    drop(peer);

    let down = bench.down().await;
    assert_eq!(down.failure.kind, ErrorKind::Network);
    assert!(
        down.failure.message.contains("1012"),
        "{}",
        down.failure.message
    );
    let _peer = bench.serve_live().await;
    assert_eq!(bench.event().await, FeedEvent::Live(Transport::Changes));
}

#[tokio::test]
async fn a_connection_that_breaks_without_a_word_is_made_again_by_itself() {
    let (mut bench, peer) = FeedBench::live().await;
    drop(peer);
    assert_eq!(bench.down().await.failure.kind, ErrorKind::Network);
    let _peer = bench.serve_live().await;
    assert_eq!(bench.event().await, FeedEvent::Live(Transport::Changes));
}

#[tokio::test]
async fn a_message_beyond_all_bounds_ends_the_socket_and_not_the_feed() {
    let (mut bench, mut peer) = FeedBench::live().await;
    let _ = peer
        .stream
        .send(Message::text("x".repeat(9 * 1024 * 1024)))
        .await;
    assert_eq!(bench.down().await.failure.kind, ErrorKind::Network);
    drop(peer);
    let _peer = bench.serve_live().await;
    assert_eq!(bench.event().await, FeedEvent::Live(Transport::Changes));
}

#[tokio::test]
async fn a_row_of_a_megabyte_is_a_change_like_any_other() {
    let (mut bench, mut peer) = FeedBench::live().await;
    let long = change(7).to_text().expect("text").replace(
        "\"config_version\"",
        &format!(
            "\"body\":\"{}\",\"config_version\"",
            "\\u0001".repeat(1_000_000)
        ),
    );
    peer.send(Message::text(long)).await;
    assert_eq!(version(&bench.event().await), Some(7));
}

#[tokio::test]
async fn a_shutdown_leaves_the_channel_and_closes_the_socket() {
    let (bench, mut peer) = FeedBench::live().await;
    bench.shutdown.cancel();
    assert_eq!(peer.frame().await.event, "phx_leave");
    assert!(matches!(peer.message().await, Message::Close(_)));
    assert!(within(peer.stream.next()).await.is_none());
    bench.ends().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_server_that_does_not_answer() {
    let (bench, peer) = FeedBench::live().await;
    bench.shutdown.cancel();
    bench.ends().await;
    drop(peer);
}

#[tokio::test]
async fn a_shutdown_while_dialing_ends_at_once() {
    let bench = FeedBench::new(64).await;
    let silent = bench.accept().await;
    bench.shutdown.cancel();
    bench.ends().await;
    drop(silent);
}

#[tokio::test]
async fn a_feed_to_which_nobody_listens_ends() {
    let (bench, _peer) = FeedBench::live().await;
    let FeedBench {
        events,
        task,
        commands,
        ..
    } = bench;
    drop(events);
    within(task).await.expect("the feed ends without a panic");
    drop(commands);
}

#[tokio::test]
async fn a_feed_that_nobody_commands_goes_on() {
    let (bench, mut peer) = FeedBench::live().await;
    let FeedBench {
        mut events,
        commands,
        ..
    } = bench;
    drop(commands);
    peer.send(change(7)).await;
    let event = within(events.recv()).await.expect("the feed runs");
    assert_eq!(version(&event), Some(7));
}

#[tokio::test]
async fn an_owner_that_takes_no_events_does_not_hold_up_the_protocol_and_is_told_of_the_loss() {
    let mut bench = FeedBench::new(1).await;
    let mut peer = bench.serve_live().await;
    for number in 1..=i64::try_from(2 * EVENTS_QUEUED).expect("a small number") {
        peer.send(change(number)).await;
    }
    bench
        .commands
        .send(FeedCommand::Rejoin(Transport::Changes, "asked".to_owned()))
        .await
        .expect("the feed runs");
    assert_eq!(peer.frame().await.event, "phx_leave");
    let join = peer.frame().await;
    assert_eq!(join.event, "phx_join");
    peer.confirm(&join.ref_.expect("a ref")).await;

    let mut lost = false;
    let mut asked = false;
    loop {
        match bench.event().await {
            FeedEvent::Lost(_) => lost = true,
            FeedEvent::Down(down) => asked = down.failure.kind == ErrorKind::Asked,
            FeedEvent::Live(_) if asked => break,
            FeedEvent::Live(_) | FeedEvent::Broadcast(..) | FeedEvent::Changed(_) => {}
        }
    }
    assert!(lost, "the loss was told");
}

#[test]
fn a_queue_that_overflows_keeps_the_latest_state_and_asks_for_a_full_sync() {
    let changed = || FeedEvent::Lost("a change".to_owned());
    let asked = FeedEvent::Down(Down {
        transport: Transport::Changes,
        failure: Failure::new(ErrorKind::Asked, ""),
        retry_in: Duration::ZERO,
    });
    let mut queue = EventQueue::default();
    queue.push(FeedEvent::Live(Transport::Changes));
    queue.push(asked.clone());
    for _ in 2..EVENTS_QUEUED {
        queue.push(changed());
    }
    assert_eq!(queue.events.len(), EVENTS_QUEUED);
    queue.push(FeedEvent::Live(Transport::Changes));
    let left: Vec<FeedEvent> = queue.events.into_iter().collect();
    let lost = FeedEvent::Lost("event queue overflowed".to_owned());
    assert_eq!(left, [asked, lost, FeedEvent::Live(Transport::Changes)]);
}
