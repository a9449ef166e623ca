//! A database, a server for it, and a client that shares no code with the agent's.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error as SocketError, Message},
};
use visit_pacer::{
    demo::{
        jwt,
        realtime_server::{RealtimeOptions, RealtimeServer},
        stack,
    },
    domain::secret::Secret,
};

use crate::harness::server::database;

/// A limit for everything that is awaited.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An expiry in the far future.
pub const NEVER: i64 = 4_000_000_000;

/// A server on a database of its own with the published table `rows(id, n, active, note)`.
pub struct Bench {
    pub server: RealtimeServer,
    pub postgres: PgConnection,
}

pub fn secret() -> Secret {
    Secret::new("a secret of these tests, at least 32 characters long")
}

pub fn service_key() -> String {
    jwt::mint(&secret(), "service_role", NEVER)
}

pub fn options(database_url: &str) -> RealtimeOptions {
    RealtimeOptions::new(
        "127.0.0.1:0".parse().expect("an address"),
        database_url,
        secret(),
    )
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(adjust: impl FnOnce(&mut RealtimeOptions)) -> Self {
        Self::over(Self::tables().await, adjust).await
    }

    /// A bench whose database can broadcast.
    pub async fn with_messages(adjust: impl FnOnce(&mut RealtimeOptions)) -> Self {
        let (database_url, mut postgres) = Self::tables().await;
        stack::messages(&mut postgres)
            .await
            .expect("what broadcasts need");
        Self::over((database_url, postgres), adjust).await
    }

    async fn tables() -> (String, PgConnection) {
        let database_url = database().await;
        let mut postgres = PgConnection::connect(&database_url)
            .await
            .expect("a connection");
        for statement in [
            "create table rows (id bigint primary key, n numeric, active boolean, note text)",
            "create table unpublished (id bigint primary key)",
            "create publication supabase_realtime for table rows",
        ] {
            sqlx::query(statement)
                .execute(&mut postgres)
                .await
                .expect(statement);
        }
        (database_url, postgres)
    }

    async fn over(
        (database_url, postgres): (String, PgConnection),
        adjust: impl FnOnce(&mut RealtimeOptions),
    ) -> Self {
        let mut options = options(&database_url);
        adjust(&mut options);
        let server = RealtimeServer::start(options)
            .await
            .expect("the server starts");
        Self { server, postgres }
    }

    pub async fn sql(&mut self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement)
            .execute(&mut self.postgres)
            .await
            .expect("the statement runs");
    }

    pub async fn connect(&self) -> Client {
        Client::connect(&self.server).await
    }

    /// A client that is subscribed to every change of `rows`.
    pub async fn subscribed(&self) -> Client {
        let mut client = self.connect().await;
        client
            .subscribe(&json!({"event": "*", "schema": "public", "table": "rows"}))
            .await;
        client
    }

    /// Ends the connections that the server has to this database.
    pub async fn cut_postgres(&mut self) {
        self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
    }
}

pub struct Client {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    joins: u32,
}

impl Client {
    pub async fn connect(server: &RealtimeServer) -> Self {
        Self::connect_with(server, &service_key()).await
    }

    pub async fn connect_with(server: &RealtimeServer, key: &str) -> Self {
        let url = format!("{}?vsn=2.0.0&apikey={key}", server.url());
        let (socket, _) = connect_async(url)
            .await
            .expect("the server accepts the key");
        Self::over(socket)
    }

    pub fn over(socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self { socket, joins: 0 }
    }

    pub async fn send(&mut self, frame: &Value) {
        self.socket
            .send(Message::text(frame.to_string()))
            .await
            .expect("the frame is sent");
    }

    /// Joins with these bindings, and gives the reply's payload.
    pub async fn join(&mut self, bindings: &Value) -> Value {
        self.joins += 1;
        let join = self.joins.to_string();
        let config = json!({ "config": { "postgres_changes": bindings } });
        self.send(&json!([join, join, "realtime:t", "phx_join", config]))
            .await;
        self.event("phx_reply").await
    }

    /// Joins with one binding and waits until it works.
    pub async fn subscribe(&mut self, binding: &Value) {
        assert_eq!(self.join(&json!([binding])).await["status"], "ok");
        let system = self.event("system").await;
        assert_eq!(system["message"], "Subscribed to PostgreSQL", "{system}");
    }

    /// The next message, or none if the connection has ended.
    pub async fn message(&mut self) -> Option<Result<Message, SocketError>> {
        timeout(PATIENCE, self.socket.next())
            .await
            .expect("a message in time")
    }

    /// The payload of the next frame, which is of this event.
    pub async fn event(&mut self, event: &str) -> Value {
        let message = self
            .message()
            .await
            .expect("the socket is open")
            .expect("a frame");
        let frame: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
        assert_eq!(frame[3], event, "{frame}");
        frame[4].clone()
    }

    /// The data of the next frame, which is a change.
    pub async fn change(&mut self) -> Value {
        self.event("postgres_changes").await["data"].clone()
    }

    /// The ids of the next changed rows.
    pub async fn changed_ids(&mut self, count: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.change().await["record"]["id"].as_i64().expect("an id"));
        }
        ids
    }

    /// Sends a ping and receives the pong.
    pub async fn ping(&mut self) {
        let ping = Message::Ping("".into());
        self.socket.send(ping).await.expect("the ping is sent");
        let pong = self.message().await;
        assert!(matches!(pong, Some(Ok(Message::Pong(_)))), "{pong:?}");
    }

    pub async fn heartbeat(&mut self) {
        self.send(&json!([null, "hb", "phoenix", "heartbeat", {}]))
            .await;
        assert_eq!(self.event("phx_reply").await["status"], "ok");
    }

    /// The code of the close frame that comes next, or none if the connection breaks.
    pub async fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.message().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}
