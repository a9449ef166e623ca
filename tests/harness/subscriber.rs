//! Another Realtime subscriber of `visit_distribution`, such as an application. It counts the events that it receives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{PATIENCE, Place, wait_until};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The server closes a client after a minute of silence.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(20);

/// It ends with this value.
pub struct Subscriber {
    updates: Arc<AtomicU64>,
    _reading: JoinSet<()>,
}

impl Subscriber {
    /// Subscribes to every change, and waits until that is live.
    pub async fn to(place: &Place) -> Self {
        let key = place.key.expose();
        let url = format!("{}?vsn=1.0.0&apikey={key}", place.realtime.url());
        let (mut socket, _) = connect_async(url).await.expect("Realtime accepts the key");
        let bindings = json!([{ "event": "*", "schema": "public", "table": "visit_distribution" }]);
        let config = json!({ "config": { "postgres_changes": bindings }, "access_token": key });
        say(&mut socket, "realtime:app", "phx_join", &config).await;
        let live = async {
            loop {
                let message = next(&mut socket).await;
                if message["event"] == "system"
                    && message["payload"]["message"] == "Subscribed to PostgreSQL"
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, live)
            .await
            .expect("the subscription is live in time");
        let updates = Arc::new(AtomicU64::new(0));
        let mut reading = JoinSet::new();
        reading.spawn(read(socket, Arc::clone(&updates)));
        Self {
            updates,
            _reading: reading,
        }
    }

    /// UPDATE events so far.
    pub fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }
}

/// The budget of write-backs: each is an event for every subscriber.
pub struct WriteBacks(Instant);

impl WriteBacks {
    /// A full budget. To be called before the agent starts.
    pub fn from_now() -> Self {
        Self(Instant::now())
    }

    /// Waits for an event; fails if the subscriber has received more than the budget allows. The time is measured after the events
    /// are counted, so a slow test only allows more.
    pub async fn holds(&self, subscriber: &Subscriber) {
        wait_until("a write-back", PATIENCE, async || subscriber.updates() > 0).await;
        let events = subscriber.updates();
        let allowed = 20 + self.0.elapsed().as_secs() / 5 + 1;
        println!("{events} of {allowed} write-backs");
        assert!(events <= allowed, "{events} events of {allowed}");
    }
}

async fn read(mut socket: Socket, updates: Arc<AtomicU64>) {
    loop {
        match timeout(HEARTBEAT_EVERY, next(&mut socket)).await {
            Ok(message) if message["payload"]["data"]["type"] == "UPDATE" => {
                updates.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_quiet) => say(&mut socket, "phoenix", "heartbeat", &json!({})).await,
        }
    }
}

async fn say(socket: &mut Socket, topic: &str, event: &str, payload: &Value) {
    let frame =
        json!({ "topic": topic, "event": event, "payload": payload, "ref": "1", "join_ref": "1" });
    socket
        .send(Message::text(frame.to_string()))
        .await
        .expect("the socket is open");
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        let message = socket
            .next()
            .await
            .expect("the socket is open")
            .expect("a frame");
        if let Message::Text(text) = message {
            return serde_json::from_str(&text).expect("JSON");
        }
    }
}
