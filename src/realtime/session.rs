//! The protocol machine of the Realtime client: what to send, what to wait for, what it means.
//!
//! Owns the refs, the one join in flight, the heartbeat, the watch over a silent socket, and the
//! back-off. Does not own the socket, a clock or a random generator: [`Session::handle`] is a
//! function of an input, the moment, and a random draw; it leaves [`Action`]s to poll and the next
//! [deadline](Session::next_deadline) to wake it at.
//!
//! Invariants:
//! - one socket, and on it one channel with at most one join in flight;
//! - a join's reply is not the subscription: live is what the server's `system` message says, and
//!   each such message is told as [`FeedEvent::Live`], so that a full sync follows;
//! - frames of an earlier join never touch the present one;
//! - each end that was not asked for is followed by another attempt, for ever, after a delay with
//!   full jitter that grows and is reset only when live.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::change::{Change, Table};
use super::fault::Down;
use super::frame::Frame;
use crate::domain::policy::{REALTIME, REALTIME_SLOW, Trouble};
use crate::domain::retry::Retry;
use crate::domain::secret::Secret;

/// The channel's topic. Any name behind `realtime:` would do; this one tells who is there.
pub const TOPIC: &str = "realtime:visit-pacer";
/// The topic of the socket itself, where heartbeats go.
const SOCKET_TOPIC: &str = "phoenix";

/// How often a heartbeat is sent; the server closes a socket that was silent for 60 s.
///
/// An answer that is missing when the next is due means a dead socket. A refused join holds answers
/// back for 5 s, which this leaves room for.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);
/// A socket that brought nothing for so long is dead whatever the timers say: the process was
/// stopped meanwhile, and the server has given the socket up.
pub const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// How long a join may go unanswered. The server itself may need 15 s to reach a cold database.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long after the join's reply the subscription may go unconfirmed.
pub const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);
/// After so many joins that failed in a row, the next one goes over a new socket.
pub const JOINS_PER_SOCKET: u32 = 3;

/// What the owner may ask of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedCommand {
    /// Follow these tables from the next join on; at least one.
    Bindings(Vec<Table>),
    /// Leave and join again at once, for this reason. Nothing happens where that is under way.
    Rejoin(String),
    /// Give the socket up and open another at once, for this reason. Nothing happens where that
    /// is under way.
    Reopen(String),
    /// Leave, close the socket, and end.
    Shutdown,
}

/// What the feed has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// The server has confirmed the subscription, also a second time in mid-life. Changes may have
    /// been missed until now: a full sync is due.
    Live,
    /// The feed is not live until the next [`FeedEvent::Live`].
    Down(Down),
    /// A row changed.
    Changed(Change),
    /// Changes cannot be told one by one, for this reason: a full sync is due.
    Lost(String),
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The socket asked for is open.
    Opened,
    /// The socket asked for could not be opened.
    DialFailed {
        /// The kind of the failure.
        class: Trouble,
        /// What went wrong.
        reason: String,
    },
    /// The open socket ended.
    Closed {
        /// How it ended.
        reason: String,
    },
    /// A frame came in.
    Received(Frame),
    /// Something came in that is no frame: a pong, a message that cannot be read.
    Noise,
    /// The owner asks for something.
    Command(FeedCommand),
    /// A deadline has passed.
    Tick,
}

/// What is to be done, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a socket; the answer is [`Input::Opened`] or [`Input::DialFailed`].
    Dial,
    /// Send the frame.
    Send(Frame),
    /// Close the socket with a closing handshake.
    Close,
    /// Drop the socket, or the attempt to open one, as it is.
    Abandon,
    /// Tell the owner.
    Emit(FeedEvent),
    /// The session has ended; nothing follows.
    Stop,
}

/// Where the session stands.
enum Phase {
    Waiting { dial_at: Instant },
    Dialing,
    Open(Connection),
    Stopped,
}

/// An open socket.
struct Connection {
    channel: Channel,
    heartbeat_at: Instant,
    /// The ref of the heartbeat that waits for its answer.
    unanswered: Option<String>,
    heard_at: Instant,
    /// Joins that failed in a row on this socket.
    failed_joins: u32,
}

/// The one channel of an open socket.
enum Channel {
    Idle { join_at: Instant },
    Joining { join_ref: String, deadline: Instant },
    Joined { join_ref: String, deadline: Instant },
    Live { join_ref: String },
}

impl Channel {
    fn join_ref(&self) -> Option<&str> {
        match self {
            Self::Idle { .. } => None,
            Self::Joining { join_ref, .. }
            | Self::Joined { join_ref, .. }
            | Self::Live { join_ref } => Some(join_ref),
        }
    }

    fn deadline(&self) -> Option<(Instant, &'static str)> {
        match self {
            Self::Idle { join_at } => Some((*join_at, "join again")),
            Self::Joining { deadline, .. } => Some((*deadline, "join unanswered")),
            Self::Joined { deadline, .. } => Some((*deadline, "subscription unconfirmed")),
            Self::Live { .. } => None,
        }
    }
}

/// The protocol machine. See the module's documentation.
pub struct Session {
    bindings: Vec<Table>,
    access_token: Option<Secret>,
    phase: Phase,
    last_ref: u64,
    ordinary: Retry,
    slow: Retry,
    actions: VecDeque<Action>,
}

impl Session {
    /// A session that follows `bindings` (at least one) and is about to open its first socket.
    /// `access_token` is sent with each join; `None` for keys that are not a JWT.
    pub fn new(bindings: Vec<Table>, access_token: Option<Secret>) -> Self {
        Self {
            bindings,
            access_token,
            phase: Phase::Dialing,
            last_ref: 0,
            ordinary: Retry::new(REALTIME.from, REALTIME.to),
            slow: Retry::new(REALTIME_SLOW.from, REALTIME_SLOW.to),
            actions: VecDeque::from([Action::Dial]),
        }
    }

    /// The next thing to do; to be asked until there is none, after each [`Session::handle`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to bring the next [`Input::Tick`], and why.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Waiting { dial_at } => Some((*dial_at, "open a socket again")),
            Phase::Dialing | Phase::Stopped => None,
            Phase::Open(connection) => [
                Some((connection.heartbeat_at, "heartbeat")),
                Some((connection.heard_at + SILENCE_LIMIT, "silent socket")),
                connection.channel.deadline(),
            ]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at),
        }
    }

    /// Takes in what happened at the moment `now`. `draw` is a fresh uniform random number, the
    /// jitter of whatever back-off follows.
    pub fn handle(&mut self, input: Input, now: Instant, draw: u32) {
        match input {
            Input::Opened => self.opened(now),
            Input::DialFailed { class, reason } => {
                if matches!(self.phase, Phase::Dialing) {
                    self.wait(class, reason, now, draw);
                }
            }
            Input::Closed { reason } => {
                if matches!(self.phase, Phase::Open(_)) {
                    self.actions.push_back(Action::Close);
                    self.wait(Trouble::Network, reason, now, draw);
                }
            }
            Input::Received(frame) => {
                self.heard(now);
                self.received(&frame, now, draw);
            }
            Input::Noise => self.heard(now),
            Input::Command(command) => self.command(command, now),
            Input::Tick => self.tick(now, draw),
        }
    }

    fn opened(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Dialing) {
            return;
        }
        self.phase = Phase::Open(Connection {
            channel: Channel::Idle { join_at: now },
            heartbeat_at: now + HEARTBEAT_INTERVAL,
            unanswered: None,
            heard_at: now,
            failed_joins: 0,
        });
        self.join(now);
    }

    fn heard(&mut self, now: Instant) {
        if let Phase::Open(connection) = &mut self.phase {
            connection.heard_at = now;
        }
    }

    fn command(&mut self, command: FeedCommand, now: Instant) {
        match (command, &self.phase) {
            (FeedCommand::Bindings(bindings), _) => self.bindings = bindings,
            (FeedCommand::Rejoin(reason), Phase::Open(connection)) => {
                if matches!(
                    connection.channel,
                    Channel::Joined { .. } | Channel::Live { .. }
                ) {
                    self.leave();
                    self.down(Trouble::Asked, reason, Duration::ZERO);
                    self.join(now);
                }
            }
            (FeedCommand::Reopen(reason), Phase::Open(_)) => {
                self.actions.push_back(Action::Abandon);
                self.down(Trouble::Asked, reason, Duration::ZERO);
                self.dial();
            }
            (FeedCommand::Rejoin(_) | FeedCommand::Reopen(_), _) => {}
            (FeedCommand::Shutdown, phase) => {
                match phase {
                    Phase::Open(_) => {
                        self.leave();
                        self.actions.push_back(Action::Close);
                    }
                    Phase::Dialing => self.actions.push_back(Action::Abandon),
                    Phase::Waiting { .. } | Phase::Stopped => {}
                }
                self.phase = Phase::Stopped;
                self.actions.push_back(Action::Stop);
            }
        }
    }

    fn tick(&mut self, now: Instant, draw: u32) {
        match &self.phase {
            Phase::Waiting { dial_at } if *dial_at <= now => self.dial(),
            Phase::Waiting { .. } | Phase::Dialing | Phase::Stopped => {}
            Phase::Open(connection) => {
                let heartbeat_is_due = connection.heartbeat_at <= now;
                if connection.heard_at + SILENCE_LIMIT <= now {
                    self.abandon("nothing was heard from the server for 60 s", now, draw);
                } else if heartbeat_is_due && connection.unanswered.is_some() {
                    self.abandon("the server did not answer a heartbeat", now, draw);
                } else {
                    if heartbeat_is_due {
                        self.send_heartbeat(now);
                    }
                    self.tick_channel(now, draw);
                }
            }
        }
    }

    fn tick_channel(&mut self, now: Instant, draw: u32) {
        let Phase::Open(connection) = &self.phase else {
            return;
        };
        match connection.channel {
            Channel::Idle { join_at } if join_at <= now => self.join(now),
            Channel::Joining { deadline, .. } if deadline <= now => {
                self.leave();
                let reason = "the server did not answer the join within 30 s".to_owned();
                self.rejoin_later(Trouble::Channel, reason, now, draw);
            }
            Channel::Joined { deadline, .. } if deadline <= now => {
                self.leave();
                let reason = "the server did not confirm the subscription within 30 s".to_owned();
                self.rejoin_later(Trouble::Channel, reason, now, draw);
            }
            Channel::Idle { .. }
            | Channel::Joining { .. }
            | Channel::Joined { .. }
            | Channel::Live { .. } => {}
        }
    }

    fn received(&mut self, frame: &Frame, now: Instant, draw: u32) {
        let Phase::Open(connection) = &mut self.phase else {
            return;
        };
        if frame.topic == SOCKET_TOPIC {
            if frame.event == "phx_reply" && frame.ref_ == connection.unanswered {
                connection.unanswered = None;
            }
            return;
        }
        let Some(join_ref) = connection.channel.join_ref() else {
            return;
        };
        if frame.topic != TOPIC || !belongs_to(frame, join_ref) {
            return;
        }
        match frame.event.as_str() {
            "phx_reply" if frame.ref_.as_deref() == Some(join_ref) => {
                self.join_answered(&frame.payload, now, draw);
            }
            "system" => self.system(&frame.payload, now, draw),
            "postgres_changes" => self.changed(&frame.payload),
            "phx_close" => {
                let reason = "the server closed the channel".to_owned();
                self.rejoin_later(Trouble::Channel, reason, now, draw);
            }
            "phx_error" => {
                let reason = "the channel failed on the server".to_owned();
                self.rejoin_later(Trouble::Channel, reason, now, draw);
            }
            _ => {}
        }
    }

    fn join_answered(&mut self, payload: &Value, now: Instant, draw: u32) {
        let Phase::Open(connection) = &mut self.phase else {
            return;
        };
        let Channel::Joining { join_ref, .. } = &connection.channel else {
            return;
        };
        let response = payload.get("response").unwrap_or(&Value::Null);
        if payload.get("status").and_then(Value::as_str) != Some("ok") {
            let text = response
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            let reason = format!("the server refused the join: {}", brief(text));
            self.rejoin_later(Trouble::of_text(text), reason, now, draw);
        } else if grants_all(response, &self.bindings) {
            let join_ref = join_ref.clone();
            connection.channel = Channel::Joined {
                join_ref,
                deadline: now + SUBSCRIBE_TIMEOUT,
            };
        } else {
            self.leave();
            let reason = "the server's answer to the join lacks a table asked for".to_owned();
            self.rejoin_later(Trouble::Channel, reason, now, draw);
        }
    }

    fn system(&mut self, payload: &Value, now: Instant, draw: u32) {
        let Phase::Open(connection) = &mut self.phase else {
            return;
        };
        let Some(join_ref) = connection.channel.join_ref() else {
            return;
        };
        let text = |name| payload.get(name).and_then(Value::as_str);
        match (text("status"), text("extension")) {
            (Some("ok"), Some("postgres_changes")) => {
                connection.channel = Channel::Live {
                    join_ref: join_ref.to_owned(),
                };
                connection.failed_joins = 0;
                self.ordinary.reset();
                self.slow.reset();
                self.actions.push_back(Action::Emit(FeedEvent::Live));
            }
            (Some("error"), _) => {
                let message = text("message").unwrap_or("no message given");
                let reason = format!("the server ended the subscription: {}", brief(message));
                self.leave();
                self.rejoin_later(Trouble::of_text(message), reason, now, draw);
            }
            _ => {}
        }
    }

    /// The server matches table names with LIKE, so an event may be of a table not asked for. One
    /// that comes before the join is answered is an earlier join's: it proves nothing of this one.
    fn changed(&mut self, payload: &Value) {
        let Phase::Open(connection) = &self.phase else {
            return;
        };
        if let Channel::Idle { .. } | Channel::Joining { .. } = connection.channel {
            return;
        }
        let event = match Change::read(payload) {
            Some(change) if self.bindings.contains(&change.table) => FeedEvent::Changed(change),
            Some(_) => return,
            None => FeedEvent::Lost("an event came that does not name its table".to_owned()),
        };
        self.actions.push_back(Action::Emit(event));
    }

    /// The channel is over: joins again after a back-off, over a new socket where this one has
    /// failed too often or holds a refused key (the server checks a key when the socket opens).
    fn rejoin_later(&mut self, class: Trouble, reason: String, now: Instant, draw: u32) {
        let Phase::Open(connection) = &mut self.phase else {
            return;
        };
        connection.failed_joins += 1;
        if class == Trouble::Key || connection.failed_joins >= JOINS_PER_SOCKET {
            self.actions.push_back(Action::Abandon);
            self.wait(class, reason, now, draw);
            return;
        }
        let retry_in = back_off(&mut self.ordinary, &mut self.slow, class, draw);
        connection.channel = Channel::Idle {
            join_at: now + retry_in,
        };
        self.down(class, reason, retry_in);
    }

    fn abandon(&mut self, reason: &str, now: Instant, draw: u32) {
        self.actions.push_back(Action::Abandon);
        self.wait(Trouble::Network, reason.to_owned(), now, draw);
    }

    /// The socket is gone: dials after a back-off, but not before a join that was put off.
    fn wait(&mut self, class: Trouble, reason: String, now: Instant, draw: u32) {
        let mut retry_in = back_off(&mut self.ordinary, &mut self.slow, class, draw);
        if let Phase::Open(Connection {
            channel: Channel::Idle { join_at },
            ..
        }) = &self.phase
        {
            retry_in = retry_in.max(join_at.saturating_duration_since(now));
        }
        self.phase = Phase::Waiting {
            dial_at: now + retry_in,
        };
        self.down(class, reason, retry_in);
    }

    fn down(&mut self, class: Trouble, reason: String, retry_in: Duration) {
        let down = Down {
            class,
            reason,
            retry_in,
        };
        self.actions.push_back(Action::Emit(FeedEvent::Down(down)));
    }

    fn dial(&mut self) {
        self.phase = Phase::Dialing;
        self.actions.push_back(Action::Dial);
    }

    fn join(&mut self, now: Instant) {
        let join_ref = self.next_ref();
        let changes: Vec<Value> = self
            .bindings
            .iter()
            .map(|table| json!({ "event": "*", "schema": table.schema, "table": table.name }))
            .collect();
        let config = json!({
            "broadcast": { "ack": false, "self": false },
            "presence": { "key": "", "enabled": false },
            "postgres_changes": changes,
            "private": false,
        });
        let mut payload = Map::from_iter([("config".to_owned(), config)]);
        if let Some(token) = &self.access_token {
            payload.insert("access_token".to_owned(), token.expose().into());
        }
        self.send(
            Some(join_ref.clone()),
            join_ref.clone(),
            TOPIC,
            "phx_join",
            payload.into(),
        );
        if let Phase::Open(connection) = &mut self.phase {
            connection.channel = Channel::Joining {
                join_ref,
                deadline: now + JOIN_TIMEOUT,
            };
        }
    }

    fn leave(&mut self) {
        let Phase::Open(connection) = &self.phase else {
            return;
        };
        let Some(join_ref) = connection.channel.join_ref().map(str::to_owned) else {
            return;
        };
        let ref_ = self.next_ref();
        self.send(Some(join_ref), ref_, TOPIC, "phx_leave", json!({}));
    }

    fn send_heartbeat(&mut self, now: Instant) {
        let ref_ = self.next_ref();
        if let Phase::Open(connection) = &mut self.phase {
            connection.heartbeat_at = now + HEARTBEAT_INTERVAL;
            connection.unanswered = Some(ref_.clone());
        }
        self.send(None, ref_, SOCKET_TOPIC, "heartbeat", json!({}));
    }

    fn send(
        &mut self,
        join_ref: Option<String>,
        ref_: String,
        topic: &str,
        event: &str,
        payload: Value,
    ) {
        let (topic, event) = (topic.to_owned(), event.to_owned());
        let frame = Frame {
            join_ref,
            ref_: Some(ref_),
            topic,
            event,
            payload,
        };
        self.actions.push_back(Action::Send(frame));
    }

    fn next_ref(&mut self) -> String {
        self.last_ref += 1;
        self.last_ref.to_string()
    }
}

fn back_off(ordinary: &mut Retry, slow: &mut Retry, class: Trouble, draw: u32) -> Duration {
    if class.is_slow() {
        slow.next(draw)
    } else {
        ordinary.next(draw)
    }
}

/// Whether a frame of the topic belongs to this join. Version 2.0.0 says so in `join_ref`, but for
/// changes, which have none; 1.0.0 repeats the join's ref in `ref` where it says so at all.
fn belongs_to(frame: &Frame, join_ref: &str) -> bool {
    match (&frame.join_ref, &frame.ref_) {
        (Some(of_join), _) => of_join == join_ref,
        (None, Some(of_push)) => of_push == join_ref,
        (None, None) => true,
    }
}

/// Whether the server's list names each table asked for. A list that is absent proves nothing
/// either way: the confirmation will tell.
fn grants_all(response: &Value, asked: &[Table]) -> bool {
    let Some(granted) = response.get("postgres_changes").and_then(Value::as_array) else {
        return true;
    };
    let names = |entry: &Value, name: &str, text: &str| {
        entry.get(name).and_then(Value::as_str) == Some(text)
    };
    asked.iter().all(|table| {
        granted.iter().any(|entry| {
            names(entry, "schema", &table.schema) && names(entry, "table", &table.name)
        })
    })
}

/// A text of the server, cut to what a line of a log can hold.
fn brief(text: &str) -> String {
    const LONGEST_CHARS: usize = 300;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_CHARS)
        .collect()
}

#[cfg(test)]
mod tests;
