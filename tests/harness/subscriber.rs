//! Another subscriber of `visit_distribution`, as an application beside the agent is one: it counts the events that it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{PATIENCE, Place};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The server closes a client that says nothing for a minute.
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
        let (mut socket, _) = connect_async(url).await.expect("Realtime lets us in");
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
