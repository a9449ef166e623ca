//! The demo's server with the recorded frames of clients.
//!
//! A recording is played by order, not by time: the frames of the client are sent, the recorded SQL is run, and each frame of the
//! real server is awaited and compared. Only times and ids may differ. The order must be the same among the answers of a channel and
//! among its changes. When a connection ends, no frame may be left that was not recorded.
//!
//! Not played: changes by statements that were not recorded, and broadcasts of clients to public topics, which the demo's server
//! does not support.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Utc;
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error as SocketError, Message, client::IntoClientRequest},
};
use visit_pacer::{
    demo::{
        realtime_server::{RealtimeOptions, RealtimeServer},
        stack,
    },
    domain::secret::Secret,
};

use super::{
    alike::Likeness,
    recording::{Recorded, Recording},
};
use crate::harness::{server::database, wait_until};

const SECRET: &str = "a secret of these tests, at least 32 characters long";
/// A limit for everything that is awaited, longer than the life of a token.
const PATIENCE: Duration = Duration::from_secs(40);
/// The life of a token that expired within a scenario, in seconds, plus a tenth of what it lived longer.
const LONG_LIFE: i64 = 12;
/// Shorter than the 60 s of the real server.
const PUBLICATION_CHECK: Duration = Duration::from_secs(10);

/// What was done to the tables before a connection, and is not in the notes.
const BEFORE: [(&str, &str, &str); 1] = [(
    "05_filters_and_tables",
    "rls_anon_nogrant",
    "revoke select on vd_rls from anon",
)];

/// This scenario had lower limits: clients, and channels of each.
const LOWERED: (&str, usize, usize) = ("08c_max_channels_and_users", 2, 3);

/// The statements of notes without them, as the frames that follow show.
const UNWRITTEN: [(&str, &str); 2] = [
    (
        "three messages in one tx",
        "select realtime.send(jsonb_build_object('k', k), 'tx', 'vd:1', true) from generate_series(0, 2) k",
    ),
    (
        "supabase_realtime_messages_replication_slot_",
        "select realtime.send(jsonb_build_object('k', k), 'lat', 'vd:1', true) from generate_series(0, 59) k",
    ),
];

/// Plays the recording without these connections.
///
/// # Errors
/// The first difference; otherwise how many frames were alike.
pub async fn replay(recording: &Recording, but: &[&str]) -> Result<usize, String> {
    let mut stage = Stage::new(recording).await;
    for (index, line) in recording.lines.iter().enumerate() {
        if but.contains(&line.connection.as_str()) {
            continue;
        }
        let sent_at = i64::try_from(line.at.as_secs()).expect("seconds");
        let outcome = stage
            .play(index, &line.connection, &line.what, sent_at)
            .await;
        outcome.map_err(|difference| {
            let at = line.at.as_secs_f64();
            format!(
                "{} at {at:.3} s, {:?}: {difference}",
                recording.name, line.connection
            )
        })?;
    }
    stage.server.stop().await;
    Ok(stage.alike)
}

/// A server, its database, and the connections of the scenario.
struct Stage<'a> {
    recording: &'a Recording,
    server: RealtimeServer,
    down: bool,
    postgres: PgConnection,
    links: BTreeMap<String, ReplayedConnection>,
    likeness: Likeness,
    tokens: BTreeMap<String, String>,
    started: i64,
    /// The recorded statements so far.
    statements: String,
    alike: usize,
}

/// One connection.
#[derive(Default)]
struct ReplayedConnection {
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    refused: Option<(Option<u16>, String)>,
    answered: bool,
    version_2: bool,
    inbox: Vec<ServerFrame>,
    closed: Option<SocketEnd>,
    joined: BTreeSet<String>,
    /// Private topics that were joined.
    private: BTreeSet<String>,
    /// Refs of pushes that were not sent.
    unsent: BTreeSet<String>,
    /// The client has left its channel, perhaps without waiting for the answer.
    leaving: bool,
    /// The client has closed the socket.
    left: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
enum SocketEnd {
    Closed(u16),
    Broken,
}

/// A frame of the server in either version.
#[derive(Clone)]
struct ServerFrame {
    topic: String,
    event: String,
    reference: Value,
    whole: Value,
}

impl<'a> Stage<'a> {
    async fn new(recording: &'a Recording) -> Self {
        let database_url = database().await;
        let mut postgres = PgConnection::connect(&database_url)
            .await
            .expect("a connection");
        sqlx::raw_sql("set search_path = public; drop schema public cascade; create schema public")
            .execute(&mut postgres)
            .await
            .expect("an empty schema");
        let rights = "grant usage on schema public to anon, authenticated, service_role;
            alter default privileges in schema public
            grant all on tables to anon, authenticated, service_role;";
        let tables = format!("{rights}{}", include_str!("tables.sql"));
        sqlx::raw_sql(AssertSqlSafe(tables))
            .execute(&mut postgres)
            .await
            .expect("the tables");
        stack::messages(&mut postgres)
            .await
            .expect("the schema of broadcasts");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let mut options = RealtimeOptions::new(listen, database_url, Secret::new(SECRET));
        options.limits.publication_check = PUBLICATION_CHECK;
        let (lowered, clients, channels) = LOWERED;
        if recording.name == lowered {
            (options.limits.clients, options.limits.channels) = (clients, channels);
        }
        Self {
            recording,
            server: RealtimeServer::start(options)
                .await
                .expect("the server starts"),
            down: false,
            postgres,
            links: BTreeMap::new(),
            likeness: Likeness::default(),
            tokens: BTreeMap::new(),
            started: now(),
            statements: String::new(),
            alike: 0,
        }
    }

    async fn play(
        &mut self,
        index: usize,
        connection: &str,
        what: &Recorded,
        sent_at: i64,
    ) -> Result<(), String> {
        match what {
            Recorded::Connect { url } => self.connect(index, connection, url, sent_at).await,
            Recorded::Opened => {
                let link = self.links.entry(connection.to_owned()).or_default();
                link.answered = true;
                self.alike += 1;
                match &link.refused {
                    None => Ok(()),
                    Some(refused) => Err(format!("expected a socket, found {refused:?}")),
                }
            }
            Recorded::Refused { status, body } => {
                let link = self.links.entry(connection.to_owned()).or_default();
                if std::mem::replace(&mut link.answered, true) {
                    return Ok(());
                }
                self.alike += 1;
                match &link.refused {
                    Some((found, _)) if found == status && body.is_empty() => Ok(()),
                    Some((found, text)) if found == status && text == body => Ok(()),
                    other => Err(format!("expected {status:?} {body:?}, found {other:?}")),
                }
            }
            Recorded::Sent(text) => self.send(connection, text, sent_at).await,
            Recorded::SentOther => {
                let garbage = Message::binary(vec![0, 1, 2]);
                self.link(connection).send(garbage).await
            }
            Recorded::Received(_) if self.link(connection).left => Ok(()),
            Recorded::Received(text) => self.expect(connection, ServerFrame::read(text)).await,
            Recorded::ReceivedBinary(bytes) => {
                self.expect(connection, ServerFrame::read_binary(bytes))
                    .await
            }
            Recorded::Left => {
                for text in self.late(index, connection) {
                    self.expect(connection, ServerFrame::read(&text)).await?;
                }
                self.leave(connection).await
            }
            Recorded::Closed { code } => self.expect_close(connection, *code).await,
            Recorded::Note(note) => self.note(note).await,
        }
    }

    fn link(&mut self, connection: &str) -> &mut ReplayedConnection {
        self.links.entry(connection.to_owned()).or_default()
    }

    async fn connect(
        &mut self,
        index: usize,
        connection: &str,
        url: &str,
        sent_at: i64,
    ) -> Result<(), String> {
        let of_connection = |line: &&super::recording::RecordedLine| line.connection == connection;
        let mut next = self.recording.lines[index + 1..]
            .iter()
            .filter(of_connection);
        let opens = matches!(next.next().map(|line| &line.what), Some(Recorded::Opened));
        if self.down && opens {
            self.server.start_again().await.expect("the port is free");
            self.down = false;
        }
        for (scenario, before, statement) in BEFORE {
            if (scenario, before) == (self.recording.name.as_str(), connection) {
                self.sql(statement).await;
            }
        }
        let (_, path) = url
            .trim_start_matches("ws://")
            .split_once('/')
            .expect("a path");
        let key = "<jwt role=service_role exp=+3600>";
        let path = self.with_tokens(path, sent_at);
        let mut request = format!("ws://{}/{path}", self.server.addr())
            .into_client_request()
            .map_err(|error| error.to_string())?;
        if opens && !path.contains("apikey=") {
            let key = self.with_tokens(key, sent_at).parse().expect("a header");
            request.headers_mut().insert("x-api-key", key);
        }
        let mut link = ReplayedConnection {
            version_2: path.contains("vsn=2.0.0"),
            ..ReplayedConnection::default()
        };
        match connect_async(request).await {
            Ok((socket, _)) => link.socket = Some(socket),
            Err(SocketError::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                let body = String::from_utf8(body).expect("text");
                link.refused = Some((Some(response.status().as_u16()), body));
            }
            Err(error) => link.refused = Some((None, error.to_string())),
        }
        self.links.insert(connection.to_owned(), link);
        Ok(())
    }

    async fn send(&mut self, connection: &str, text: &str, sent_at: i64) -> Result<(), String> {
        let text = since(self.started, self.with_tokens(text, sent_at));
        self.caught_up().await;
        let link = self.link(connection);
        if let Some(frame) = ServerFrame::read(&text) {
            let private = link.private.contains(&frame.topic);
            if frame.event == "broadcast" && link.joined.contains(&frame.topic) && !private {
                link.unsent.insert(frame.reference.to_string());
                return Ok(());
            }
            if frame.payload()["config"]["private"] == true {
                link.private.insert(frame.topic.clone());
            }
            link.leaving = frame.event == "phx_leave";
        }
        link.send(Message::text(text)).await
    }

    async fn expect(
        &mut self,
        connection: &str,
        recorded: Option<ServerFrame>,
    ) -> Result<(), String> {
        let recorded = recorded.ok_or("the recorded frame is none")?;
        let link = self.links.entry(connection.to_owned()).or_default();
        let unsent = link.unsent.contains(&recorded.reference.to_string());
        // Broadcasts of the database have an id.
        let of_a_client = recorded.event == "broadcast" && recorded.payload()["meta"].is_null();
        if of_a_client || unsent || is_of_before(&recorded, &self.statements) {
            return Ok(());
        }
        let found = link.next_like(&recorded).await?;
        if recorded.event == "phx_reply" {
            link.joined.insert(recorded.topic.clone());
        }
        self.alike += 1;
        self.likeness.compare(&recorded.whole, &found.whole)
    }

    /// What was recorded after the client had left.
    fn late(&self, left_at: usize, connection: &str) -> Vec<String> {
        let later = self.recording.lines[left_at + 1..].iter();
        let of_connection = later.filter(|line| line.connection == connection);
        of_connection
            .take_while(|line| !matches!(line.what, Recorded::Connect { .. }))
            .filter_map(|line| {
                if let Recorded::Received(text) = &line.what {
                    Some(text.clone())
                } else {
                    None
                }
            })
            .collect()
    }

    async fn leave(&mut self, connection: &str) -> Result<(), String> {
        let link = self.link(connection);
        link.left = true;
        link.barrier().await?;
        let leaving = link.leaving;
        let left: Vec<String> = link
            .inbox
            .drain(..)
            .filter(|frame| !leaving || frame.sequence() != "answers")
            .map(|frame| frame.whole.to_string())
            .collect();
        if let Some(mut socket) = link.socket.take() {
            drop(socket.close(None).await);
        }
        match left.as_slice() {
            [] => Ok(()),
            more => Err(format!("expected no more, found {more:?}")),
        }
    }

    async fn expect_close(&mut self, connection: &str, code: Option<u64>) -> Result<(), String> {
        let link = self.link(connection);
        if link.socket.is_none() {
            return Ok(());
        }
        while link.closed.is_none() {
            link.read().await?;
        }
        link.socket = None;
        let found = match link.closed.take() {
            Some(SocketEnd::Closed(code)) => Some(u64::from(code)),
            Some(SocketEnd::Broken) | None => None,
        };
        self.alike += 1;
        if found == code {
            Ok(())
        } else {
            Err(format!("expected the close code {code:?}, found {found:?}"))
        }
    }

    async fn note(&mut self, note: &Value) -> Result<(), String> {
        if let Some(statement) = note["sql"].as_str() {
            let mut statement = statement.to_owned();
            for argument in note["args"].as_array().into_iter().flatten() {
                let text = argument
                    .as_str()
                    .map_or_else(|| argument.to_string(), str::to_owned);
                statement = statement.replacen("%s", &format!("'{text}'"), 1);
            }
            self.statements.push_str(&statement);
            self.sql(&statement).await;
        }
        let unwritten = |(words, _): &&(&str, &str)| note.to_string().contains(words);
        if let Some((_, statement)) = UNWRITTEN.iter().find(unwritten) {
            self.sql(statement).await;
        }
        match note.as_str() {
            Some("kill -9 server") => self.server.kill().await,
            Some("SIGTERM server") => self.server.stop().await,
            _ => return Ok(()),
        }
        self.down = true;
        Ok(())
    }

    /// Waits until the server has read what was committed, so that later joins do not receive it.
    async fn caught_up(&mut self) {
        let lsn: String = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut self.postgres)
            .await
            .expect("an LSN");
        let behind = "select count(*) from pg_replication_slots
            where database = current_database() and confirmed_flush_lsn < $1::text::pg_lsn";
        wait_until("the server has read all changes", PATIENCE, async || {
            let slots: i64 = sqlx::query_scalar(behind)
                .bind(&lsn)
                .fetch_one(&mut self.postgres)
                .await
                .expect("the slots are there");
            slots == 0
        })
        .await;
    }

    async fn sql(&mut self, statement: &str) {
        let run = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        run.execute(&mut self.postgres)
            .await
            .expect("the recorded statement runs");
    }

    /// The text with tokens in place of their descriptions (`<jwt role=… exp=+seconds forged>`).
    fn with_tokens(&mut self, text: &str, sent_at: i64) -> String {
        let mut text = text.to_owned();
        while let Some((before, rest)) = text.split_once("<jwt") {
            let (description, after) = rest.split_once('>').expect("the description ends");
            let token = match self.tokens.get(description) {
                Some(token) => token.clone(),
                None => self.mint(description, sent_at),
            };
            text = format!("{before}{token}{after}");
        }
        text
    }

    fn mint(&mut self, description: &str, sent_at: i64) -> String {
        let now = now();
        let mut claims = json!({});
        let mut secret = SECRET;
        for part in description.split_whitespace() {
            match part.split_once('=') {
                Some(("role", role)) => claims["role"] = json!(role),
                Some(("exp", seconds)) => {
                    let seconds: i64 = seconds.parse().expect("seconds");
                    let last = self.recording.lines.last().expect("lines").at.as_secs();
                    let expires_at = if seconds <= sent_at {
                        now - (sent_at - seconds)
                    } else if seconds <= i64::try_from(last).expect("seconds") {
                        self.started + seconds.min(LONG_LIFE) + (seconds - LONG_LIFE).max(0) / 10
                    } else {
                        self.started + seconds
                    };
                    claims["exp"] = json!(expires_at);
                }
                _ => secret = "another secret",
            }
        }
        let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "HS256" })), part(&claims));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
        mac.update(signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        let token = format!("{signed}.{signature}");
        self.tokens.insert(description.to_owned(), token.clone());
        token
    }
}

impl ReplayedConnection {
    async fn send(&mut self, message: Message) -> Result<(), String> {
        let socket = self
            .socket
            .as_mut()
            .ok_or("there is no socket to send on")?;
        socket
            .send(message)
            .await
            .map_err(|error| error.to_string())
    }

    /// Reads the next frame into the inbox, or the end.
    async fn read(&mut self) -> Result<(), String> {
        let socket = self
            .socket
            .as_mut()
            .ok_or("there is no socket to read from")?;
        let next = timeout(PATIENCE, socket.next()).await;
        match next.map_err(|_| "nothing came in time".to_owned())? {
            Some(Ok(Message::Text(text))) => {
                self.inbox
                    .push(ServerFrame::read(&text).ok_or_else(|| format!("no frame: {text}"))?);
            }
            Some(Ok(Message::Binary(bytes))) => {
                let frame = ServerFrame::read_binary(&bytes);
                self.inbox
                    .push(frame.ok_or_else(|| format!("no frame: {bytes:?}"))?);
            }
            Some(Ok(Message::Close(frame))) => {
                self.closed = Some(frame.map_or(SocketEnd::Broken, |frame| {
                    SocketEnd::Closed(frame.code.into())
                }));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.closed = Some(SocketEnd::Broken),
        }
        Ok(())
    }

    /// The next frame of the sequence and topic of the recorded one.
    async fn next_like(&mut self, recorded: &ServerFrame) -> Result<ServerFrame, String> {
        loop {
            let like = |found: &ServerFrame| {
                found.topic == recorded.topic && found.sequence() == recorded.sequence()
            };
            if let Some(at) = self.inbox.iter().position(like) {
                let first = !self.joined.contains(&recorded.topic);
                let early = self
                    .inbox
                    .iter()
                    .position(|frame| frame.topic == recorded.topic);
                if first && early != Some(at) {
                    return Err(format!(
                        "a frame came before the join's reply: {}",
                        recorded.whole
                    ));
                }
                return Ok(self.inbox.remove(at));
            }
            if let Some(end) = self.closed {
                return Err(format!(
                    "expected {}, found the end: {end:?}",
                    recorded.whole
                ));
            }
            self.read()
                .await
                .map_err(|error| format!("expected {}, {error}", recorded.whole))?;
        }
    }

    /// Reads all that the server has sent before now.
    async fn barrier(&mut self) -> Result<(), String> {
        if self.socket.is_none() || self.closed.is_some() {
            return Ok(());
        }
        let beat = if self.version_2 {
            json!([null, "barrier", "phoenix", "heartbeat", {}])
        } else {
            json!({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "barrier"})
        };
        self.send(Message::text(beat.to_string())).await?;
        loop {
            let answer = |frame: &ServerFrame| frame.reference == "barrier";
            if let Some(at) = self.inbox.iter().position(answer) {
                self.inbox.remove(at);
                return Ok(());
            }
            if self.closed.is_some() {
                return Err("the server closed the socket".to_owned());
            }
            self.read().await?;
        }
    }
}

impl ServerFrame {
    fn read(text: &str) -> Option<Self> {
        let whole: Value = serde_json::from_str(text).ok()?;
        let [reference, topic, event] = match &whole {
            Value::Array(parts) if parts.len() == 5 => [&parts[1], &parts[2], &parts[3]],
            Value::Object(fields) => {
                ["ref", "topic", "event"].map(|name| fields.get(name).unwrap_or(&Value::Null))
            }
            Value::Array(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => {
                return None;
            }
        };
        Some(Self {
            topic: topic.as_str()?.to_owned(),
            event: event.as_str()?.to_owned(),
            reference: reference.clone(),
            whole,
        })
    }

    /// A broadcast in version 2.0.0: the kind 4, the lengths of three texts, 1 for JSON, the texts, the payload.
    fn read_binary(bytes: &[u8]) -> Option<Self> {
        let (&[4, topic, event, meta, 1], mut rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let mut text = |length: u8| {
            let (text, left) = rest.split_at_checked(length.into())?;
            rest = left;
            std::str::from_utf8(text).ok()
        };
        let [topic, event, meta] = [text(topic)?, text(event)?, text(meta)?];
        let payload = json!({
            "event": event,
            "meta": serde_json::from_str::<Value>(meta).ok()?,
            "payload": serde_json::from_slice::<Value>(rest).ok()?,
        });
        Some(Self {
            topic: topic.to_owned(),
            event: "broadcast".to_owned(),
            reference: Value::Null,
            whole: json!([null, null, topic, "broadcast", payload]),
        })
    }

    fn payload(&self) -> &Value {
        match &self.whole {
            Value::Array(parts) => &parts[4],
            Value::Object(fields) => fields.get("payload").unwrap_or(&Value::Null),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => &Value::Null,
        }
    }

    /// Frames of one sequence keep their order; those of different ones may not.
    fn sequence(&self) -> &'static str {
        match self.event.as_str() {
            "system" if self.payload()["extension"] == "postgres_changes" => "subscription",
            "presence_state" => "presence",
            "postgres_changes" => "changes",
            "broadcast" => "broadcasts",
            _ => "answers",
        }
    }
}

/// Seconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the server compares tokens with the clock"
)]
fn now() -> i64 {
    Utc::now().timestamp()
}

/// The text with this time, in seconds, as the start of a replay.
fn since(started: i64, text: String) -> String {
    let Some((before, rest)) = text.split_once(r#""since":"#) else {
        return text;
    };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!(r#"{before}"since":{}{after}"#, started * 1_000)
}

/// A change that no recorded statement so far can have made.
fn is_of_before(frame: &ServerFrame, statements: &str) -> bool {
    match frame.payload()["data"]["type"].as_str() {
        Some("DELETE") => !statements.contains("delete "),
        Some(_) => statements.is_empty(),
        None => false,
    }
}
