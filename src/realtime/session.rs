//! The protocol machine of the Realtime client: what to send, what to wait for, what it means.
//!
//! Owns the refs, the one join in flight, the heartbeat, the watch over a silent socket, and the
//! back-off. Does not own the socket, a clock or a random generator: [`Session::handle`] is a
//! function of an input, the moment, and a random draw; it leaves [`Action`]s to poll and the next
//! [deadline](Session::next_deadline) to wake it at.
//!
//! Invariants:
//! - one socket, on it a channel for each [`Transport`] that is followed, and at most one join in flight;
//! - a join's reply is not the subscription to a table: live is what the server's `system` message
//!   says; broadcasts come from the reply on. Each is told as [`FeedEvent::Live`], so that a full
//!   sync follows;
//! - a channel fails and backs off by itself; a socket on which the other way is live is not given
//!   up for it;
//! - frames of an earlier join never touch the present one;
//! - each end that was not asked for is followed by another attempt, for ever, after a delay with
//!   full jitter that grows and is reset only when live.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::broadcast::Broadcast;
use super::change::{Change, Table};
pub use super::channel::{BROADCAST_TOPIC, TOPIC};
use super::channel::{Channel, State};
use super::failure::Down;
use super::frame::Frame;
use crate::domain::error_policy::{ErrorKind, REALTIME};
use crate::domain::secret::Secret;
use crate::domain::transport::Transport;

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
    /// Follow these tables from the next join on; none: follow no table any more.
    Bindings(Vec<Table>),
    /// Listen to broadcasts, or no more.
    Broadcasts(bool),
    /// Leave and join again at once, for this reason. Nothing happens where that is under way.
    Rejoin(Transport, String),
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
    Live(Transport),
    /// The way is not live until its next [`FeedEvent::Live`].
    Down(Down),
    /// A row changed.
    Changed(Change),
    /// A broadcast from the database; whether it was told again from the server's store.
    Broadcast(Broadcast, bool),
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
        class: ErrorKind,
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
    heartbeat_at: Instant,
    /// The ref of the heartbeat that waits for its answer.
    unanswered: Option<String>,
    heard_at: Instant,
}

/// The protocol machine. See the module's documentation.
pub struct Session {
    bindings: Vec<Table>,
    access_token: Option<Secret>,
    phase: Phase,
    /// Those that are followed, at most one a way.
    channels: Vec<Channel>,
    /// When the last canary was broadcast, in milliseconds of the Unix epoch.
    canary_at: Option<i64>,
    last_ref: u64,
    actions: VecDeque<Action>,
}

impl Session {
    /// A session that follows `bindings` and is about to open its first socket. `access_token` is
    /// sent with each join; `None` for keys that are not a JWT.
    pub fn new(bindings: Vec<Table>, access_token: Option<Secret>) -> Self {
        let changes = (!bindings.is_empty()).then(|| Channel::new(Transport::Changes));
        Self {
            bindings,
            access_token,
            phase: Phase::Dialing,
            channels: changes.into_iter().collect(),
            canary_at: None,
            last_ref: 0,
            actions: VecDeque::from([Action::Dial]),
        }
    }

    /// The session, listening to broadcasts beside the tables or in place of them.
    #[must_use]
    pub fn with_broadcasts(mut self) -> Self {
        self.channels.push(Channel::new(Transport::Broadcast));
        self
    }

    /// From now on joins carry this token, and each channel that has joined is told of it.
    pub fn renew(&mut self, access_token: Secret) {
        if matches!(self.phase, Phase::Open(_)) {
            let joined = |channel: &Channel| {
                let join_ref = channel.join_ref()?.to_owned();
                Some((join_ref, channel.topic()))
            };
            let joined: Vec<(String, &str)> = self.channels.iter().filter_map(joined).collect();
            for (join_ref, topic) in joined {
                let payload = json!({ "access_token": access_token.expose() });
                let ref_ = self.next_ref();
                self.send(Some(join_ref), ref_, topic, "access_token", payload);
            }
        }
        self.access_token = Some(access_token);
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
            Phase::Open(connection) => {
                let joining = self.channels.iter().any(Channel::is_joining);
                let waits = |channel: &&Channel| joining && channel.join_ref().is_none();
                let channels = self.channels.iter().filter(|channel| !waits(channel));
                [
                    (connection.heartbeat_at, "heartbeat"),
                    (connection.heard_at + SILENCE_LIMIT, "silent socket"),
                ]
                .into_iter()
                .chain(channels.filter_map(Channel::deadline))
                .min_by_key(|(at, _)| *at)
            }
        }
    }

    /// Takes in what happened at the moment `now`. `draw` is a fresh uniform random number, the
    /// jitter of whatever back-off follows.
    pub fn handle(&mut self, input: Input, now: Instant, draw: u32) {
        match input {
            Input::Opened => self.opened(now),
            Input::DialFailed { class, reason } => {
                if matches!(self.phase, Phase::Dialing) {
                    self.socket_lost(class, &reason, now, draw);
                }
            }
            Input::Closed { reason } => {
                if matches!(self.phase, Phase::Open(_)) {
                    self.actions.push_back(Action::Close);
                    self.socket_lost(ErrorKind::Network, &reason, now, draw);
                }
            }
            Input::Received(frame) => {
                self.heard(now);
                self.received(&frame, now, draw);
            }
            Input::Noise => self.heard(now),
            Input::Command(command) => self.command(command),
            Input::Tick => self.tick(now, draw),
        }
        self.join_next(now);
    }

    fn opened(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Dialing) {
            return;
        }
        self.phase = Phase::Open(Connection {
            heartbeat_at: now + HEARTBEAT_INTERVAL,
            unanswered: None,
            heard_at: now,
        });
    }

    fn heard(&mut self, now: Instant) {
        if let Phase::Open(connection) = &mut self.phase {
            connection.heard_at = now;
        }
    }

    fn command(&mut self, command: FeedCommand) {
        match (command, &self.phase) {
            (FeedCommand::Bindings(bindings), _) => {
                self.follow(Transport::Changes, !bindings.is_empty());
                self.bindings = bindings;
            }
            (FeedCommand::Broadcasts(wanted), _) => self.follow(Transport::Broadcast, wanted),
            (FeedCommand::Rejoin(transport, reason), Phase::Open(_)) => {
                let joined = self.channels.iter().position(|channel| {
                    channel.transport == transport
                        && channel.join_ref().is_some()
                        && !channel.is_joining()
                });
                if let Some(at) = joined {
                    self.leave(at);
                    self.defer(at, None);
                    self.down(transport, ErrorKind::Asked, reason, Duration::ZERO);
                }
            }
            (FeedCommand::Reopen(reason), Phase::Open(_)) => {
                self.actions.push_back(Action::Abandon);
                self.channels.iter_mut().for_each(Channel::loses_socket);
                self.all_down(ErrorKind::Asked, &reason, Duration::ZERO);
                self.dial();
            }
            (FeedCommand::Rejoin(..) | FeedCommand::Reopen(_), _) => {}
            (FeedCommand::Shutdown, phase) => {
                match phase {
                    Phase::Open(_) => {
                        (0..self.channels.len()).for_each(|at| self.leave(at));
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
                    self.tick_channels(now, draw);
                }
            }
        }
    }

    fn tick_channels(&mut self, now: Instant, draw: u32) {
        let overdue = |channel: &Channel| channel.overdue(now);
        for at in 0..self.channels.len() {
            if let Some(what) = self.channels.get(at).and_then(overdue) {
                self.leave(at);
                self.rejoin_later(at, ErrorKind::Channel, what.to_owned(), now, draw);
            }
        }
    }

    /// Follows a way, or no more.
    fn follow(&mut self, transport: Transport, wanted: bool) {
        let at = self
            .channels
            .iter()
            .position(|channel| channel.transport == transport);
        match (at, wanted) {
            (None, true) => self.channels.push(Channel::new(transport)),
            (Some(at), false) => {
                if matches!(self.phase, Phase::Open(_)) {
                    self.leave(at);
                }
                self.channels.remove(at);
                let reason = "it is not followed any more".to_owned();
                self.down(transport, ErrorKind::Asked, reason, Duration::ZERO);
            }
            (None, false) | (Some(_), true) => {}
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
        let of_frame = |channel: &Channel| {
            let join_ref = channel.join_ref();
            frame.topic == channel.topic() && join_ref.is_some_and(|join| belongs_to(frame, join))
        };
        let Some(at) = self.channels.iter().position(of_frame) else {
            return;
        };
        match frame.event.as_str() {
            "phx_reply" => self.join_answered(at, frame, now, draw),
            "system" => self.system(at, &frame.payload, now, draw),
            "postgres_changes" => self.changed(at, &frame.payload),
            "broadcast" => self.broadcast(at, &frame.payload),
            "phx_close" => {
                let reason = "the server closed the channel".to_owned();
                self.rejoin_later(at, ErrorKind::Channel, reason, now, draw);
            }
            "phx_error" => {
                let reason = "the channel failed on the server".to_owned();
                self.rejoin_later(at, ErrorKind::Channel, reason, now, draw);
            }
            _ => {}
        }
    }

    fn join_answered(&mut self, at: usize, frame: &Frame, now: Instant, draw: u32) {
        let Some(channel) = self.channels.get_mut(at).filter(|one| one.is_joining()) else {
            return;
        };
        let Some(join_ref) = frame
            .ref_
            .clone()
            .filter(|of| channel.join_ref() == Some(of))
        else {
            return;
        };
        let response = frame.payload.get("response").unwrap_or(&Value::Null);
        if frame.payload.get("status").and_then(Value::as_str) != Some("ok") {
            let text = response
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            let reason = format!("the server refused the join: {}", brief(text));
            self.rejoin_later(at, ErrorKind::of_text(text), reason, now, draw);
        } else if channel.transport == Transport::Broadcast {
            channel.goes_live(join_ref);
            self.emit(FeedEvent::Live(Transport::Broadcast));
        } else if grants_all(response, &self.bindings) {
            channel.state = State::Joined {
                join_ref,
                deadline: now + SUBSCRIBE_TIMEOUT,
            };
        } else {
            self.leave(at);
            let reason = "the server's answer to the join lacks a table asked for".to_owned();
            self.rejoin_later(at, ErrorKind::Channel, reason, now, draw);
        }
    }

    fn system(&mut self, at: usize, payload: &Value, now: Instant, draw: u32) {
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        let Some(join_ref) = channel.join_ref().map(str::to_owned) else {
            return;
        };
        let text = |name| payload.get(name).and_then(Value::as_str);
        match (text("status"), text("extension")) {
            (Some("ok"), Some("postgres_changes")) if channel.transport == Transport::Changes => {
                channel.goes_live(join_ref);
                self.emit(FeedEvent::Live(Transport::Changes));
            }
            (Some("error"), _) => {
                let message = text("message").unwrap_or("no message given");
                let reason = format!("the server ended the subscription: {}", brief(message));
                self.leave(at);
                self.rejoin_later(at, ErrorKind::of_text(message), reason, now, draw);
            }
            _ => {}
        }
    }

    /// The server matches table names with LIKE, so an event may be of a table not asked for. One
    /// that comes before the join is answered is an earlier join's: it proves nothing of this one.
    fn changed(&mut self, at: usize, payload: &Value) {
        if self.channels.get(at).is_none_or(Channel::is_joining) {
            return;
        }
        match Change::read(payload) {
            Some(change) if self.bindings.contains(&change.table) => {
                self.emit(FeedEvent::Changed(change));
            }
            Some(_) => {}
            None => {
                let reason = "an event came that does not name its table".to_owned();
                self.emit(FeedEvent::Lost(reason));
            }
        }
    }

    fn broadcast(&mut self, at: usize, payload: &Value) {
        if !self.channels.get(at).is_some_and(Channel::is_live) {
            return;
        }
        match Broadcast::read(payload) {
            Some(Ok(broadcast)) => {
                if let Broadcast::Canary { sent_at } = broadcast {
                    self.canary_at = self.canary_at.max(sent_at);
                }
                let replayed = Broadcast::is_replayed(payload);
                self.emit(FeedEvent::Broadcast(broadcast, replayed));
            }
            Some(Err(reason)) => self.emit(FeedEvent::Lost(reason)),
            None => {}
        }
    }

    /// The channel is over: joins again after a back-off. Unless another is live, it does so over
    /// a new socket where this one has failed too often or holds a key that is refused or whose time
    /// is over (the server checks a key when the socket opens).
    fn rejoin_later(
        &mut self,
        at: usize,
        class: ErrorKind,
        reason: String,
        now: Instant,
        draw: u32,
    ) {
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        channel.failed_joins += 1;
        let hopeless = matches!(class, ErrorKind::Key | ErrorKind::Expired)
            || channel.failed_joins >= JOINS_PER_SOCKET;
        channel.state = State::Idle { join_at: None };
        if hopeless && !self.channels.iter().any(Channel::is_live) {
            self.actions.push_back(Action::Abandon);
            self.wait(at, class, &reason, now, draw);
            return;
        }
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        let (transport, retry_in) = (channel.transport, channel.back_off(class, draw));
        self.defer(at, Some(now + retry_in));
        self.down(transport, class, reason, retry_in);
    }

    fn defer(&mut self, at: usize, join_at: Option<Instant>) {
        if let Some(channel) = self.channels.get_mut(at) {
            channel.state = State::Idle { join_at };
        }
    }

    fn abandon(&mut self, reason: &str, now: Instant, draw: u32) {
        self.actions.push_back(Action::Abandon);
        self.socket_lost(ErrorKind::Network, reason, now, draw);
    }

    /// The socket is gone, or could not be had: the back-off is that of a channel that was live.
    fn socket_lost(&mut self, class: ErrorKind, reason: &str, now: Instant, draw: u32) {
        let live = self.channels.iter().position(Channel::is_live);
        self.wait(live.unwrap_or(0), class, reason, now, draw);
    }

    /// Dials after the back-off of the channel `at`, but not before a join that was put off.
    fn wait(&mut self, at: usize, class: ErrorKind, reason: &str, now: Instant, draw: u32) {
        let mut retry_in = match self.channels.get_mut(at) {
            Some(channel) => channel.back_off(class, draw),
            None => REALTIME.to,
        };
        self.channels.iter_mut().for_each(Channel::loses_socket);
        let first = self.channels.iter().map(Channel::join_at).min().flatten();
        if let Some(join_at) = first {
            retry_in = retry_in.max(join_at.saturating_duration_since(now));
        }
        self.phase = Phase::Waiting {
            dial_at: now + retry_in,
        };
        self.all_down(class, reason, retry_in);
    }

    fn all_down(&mut self, class: ErrorKind, reason: &str, retry_in: Duration) {
        let transports: Vec<Transport> = self
            .channels
            .iter()
            .map(|channel| channel.transport)
            .collect();
        for transport in transports {
            self.down(transport, class, reason.to_owned(), retry_in);
        }
    }

    fn down(&mut self, transport: Transport, class: ErrorKind, reason: String, retry_in: Duration) {
        self.emit(FeedEvent::Down(Down {
            transport,
            class,
            reason,
            retry_in,
        }));
    }

    fn emit(&mut self, event: FeedEvent) {
        self.actions.push_back(Action::Emit(event));
    }

    fn dial(&mut self) {
        self.phase = Phase::Dialing;
        self.actions.push_back(Action::Dial);
    }

    /// Sends the next join that is due, if none is in flight.
    fn join_next(&mut self, now: Instant) {
        let due = |channel: &Channel| channel.is_due(now);
        let joining = self.channels.iter().any(Channel::is_joining);
        if !joining
            && matches!(self.phase, Phase::Open(_))
            && let Some(at) = self.channels.iter().position(due)
        {
            self.join(at, now);
        }
    }

    fn join(&mut self, at: usize, now: Instant) {
        let join_ref = self.next_ref();
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        channel.state = State::Joining {
            join_ref: join_ref.clone(),
            deadline: now + JOIN_TIMEOUT,
        };
        let (topic, config) = (
            channel.topic(),
            channel.config(&self.bindings, self.canary_at),
        );
        let mut payload = Map::from_iter([("config".to_owned(), config)]);
        if let Some(token) = &self.access_token {
            payload.insert("access_token".to_owned(), token.expose().into());
        }
        let payload = payload.into();
        self.send(Some(join_ref.clone()), join_ref, topic, "phx_join", payload);
    }

    fn leave(&mut self, at: usize) {
        let joined = |channel: &Channel| Some((channel.topic(), channel.join_ref()?.to_owned()));
        let Some((topic, join_ref)) = self.channels.get(at).and_then(joined) else {
            return;
        };
        let ref_ = self.next_ref();
        self.send(Some(join_ref), ref_, topic, "phx_leave", json!({}));
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
