//! The protocol's state machine: what to send, what to wait for, and what a frame means.
//!
//! It owns no socket, clock or random generator: [`Session::handle`] takes an input, the time and a random draw; the driver
//! then polls the [`SessionAction`]s and sends a tick at the next [deadline](Session::next_deadline).
//!
//! Invariants:
//! - one socket, on it one channel for each followed [`Transport`], and at most one join in flight;
//! - the reply to a join does not confirm the subscription to a table: the server's `system` message does. Broadcasts arrive
//!   from the reply on. [`FeedEvent::Live`] reports both, so that a full sync follows;
//! - a channel fails and backs off by itself; the socket stays open while the other transport is live on it;
//! - frames of an earlier join never affect the present one;
//! - every unrequested end leads to another attempt, after a delay with full jitter that grows until the channel is live.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::broadcast::Broadcast;
use super::change::{Change, FollowedTable};
pub use super::channel::{BROADCAST_TOPIC, TOPIC};
use super::channel::{Channel, ChannelState};
use super::failure::Down;
use super::frame::Frame;
use crate::domain::error_policy::{ErrorKind, Failure, REALTIME};
use crate::domain::secret::Secret;
use crate::domain::transport::Transport;

/// The topic of the socket itself, for heartbeats.
const SOCKET_TOPIC: &str = "phoenix";

/// The server closes a socket that was silent for 60 s. A heartbeat without an answer when the next one is due means a dead
/// socket; the server delays answers by 5 s when it refuses a join.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);
/// A socket without any message for this long is dead, whatever the timers say: the process was suspended, and the server
/// has closed the socket.
pub const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// For the answer to a join. The server may need 15 s to connect to a cold database.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// From the answer to the confirmation of the subscription.
pub const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);
/// After this many failed joins in a row the session opens a new socket.
pub const JOINS_PER_SOCKET: u32 = 3;

/// A command to the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedCommand {
    /// Follow these tables from the next join on.
    Bindings(Vec<FollowedTable>),
    /// Start or stop to listen to broadcasts.
    Broadcasts(bool),
    /// Leave and join again at once, for this reason; ignored if a join is in progress.
    Rejoin(Transport, String),
    /// Abandon the socket and open another at once, for this reason; ignored if no socket is open.
    Reopen(String),
    /// Leave, close the socket, and end.
    Shutdown,
}

/// An event of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// The server confirmed the subscription, possibly again. Changes may have been missed until now: a full sync is due.
    Live(Transport),
    /// The transport is not live until its next [`FeedEvent::Live`].
    Down(Down),
    /// A row changed.
    Changed(Change),
    /// A broadcast from the database; whether the server replayed it.
    Broadcast(Broadcast, bool),
    /// Changes were lost, for this reason: a full sync is due.
    Lost(String),
}

/// An input of the session.
#[derive(Debug)]
pub enum SessionInput {
    /// The socket is open.
    Opened,
    /// The socket could not be opened.
    DialFailed(Failure),
    /// The socket was closed, for this reason.
    Closed(String),
    /// A frame arrived.
    Received(Frame),
    /// Another message arrived: a ping, a pong, or an unreadable one.
    Activity,
    /// See [`FeedCommand`].
    Command(FeedCommand),
    /// A deadline has passed.
    Tick,
}

/// An action for the driver of the session, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Open a socket; the answer is [`SessionInput::Opened`] or [`SessionInput::DialFailed`].
    Dial,
    /// Send the frame.
    Send(Frame),
    /// Close the socket with a closing handshake.
    Close,
    /// Drop the socket, or the attempt to open one.
    Abandon,
    /// Pass the event on.
    Emit(FeedEvent),
    /// The session has ended; nothing follows.
    Stop,
}

enum Phase {
    Waiting { dial_at: Instant },
    Dialing,
    Open(OpenSocket),
    Stopped,
}

struct OpenSocket {
    heartbeat_at: Instant,
    /// The ref of the heartbeat without an answer.
    unanswered: Option<String>,
    active_at: Instant,
}

/// See the module.
pub struct Session {
    bindings: Vec<FollowedTable>,
    access_token: Option<Secret>,
    phase: Phase,
    /// At most one for each transport.
    channels: Vec<Channel>,
    /// When the latest canary was sent, in milliseconds of the Unix epoch.
    canary_at: Option<i64>,
    last_ref: u64,
    actions: VecDeque<SessionAction>,
}

impl Session {
    /// A session whose first action opens a socket. Each join contains `access_token`; `None` for keys that are not a JWT.
    pub fn new(bindings: Vec<FollowedTable>, access_token: Option<Secret>) -> Self {
        let changes = (!bindings.is_empty()).then(|| Channel::new(Transport::Changes));
        Self {
            bindings,
            access_token,
            phase: Phase::Dialing,
            channels: changes.into_iter().collect(),
            canary_at: None,
            last_ref: 0,
            actions: VecDeque::from([SessionAction::Dial]),
        }
    }

    /// The session, also listening to broadcasts.
    #[must_use]
    pub fn with_broadcasts(mut self) -> Self {
        self.channels.push(Channel::new(Transport::Broadcast));
        self
    }

    /// Replaces the token of joins, also on the channels that have joined.
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

    /// The next action; to be polled until there is none, after each [`Session::handle`].
    pub fn poll_action(&mut self) -> Option<SessionAction> {
        self.actions.pop_front()
    }

    /// When the next [`SessionInput::Tick`] is due, and why.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Waiting { dial_at } => Some((*dial_at, "open a socket again")),
            Phase::Dialing | Phase::Stopped => None,
            Phase::Open(socket) => {
                let joining = self.channels.iter().any(Channel::is_joining);
                let waits = |channel: &&Channel| joining && channel.join_ref().is_none();
                let channels = self.channels.iter().filter(|channel| !waits(channel));
                [
                    (socket.heartbeat_at, "heartbeat"),
                    (socket.active_at + SILENCE_LIMIT, "silent socket"),
                ]
                .into_iter()
                .chain(channels.filter_map(Channel::deadline))
                .min_by_key(|(at, _)| *at)
            }
        }
    }

    /// Handles an input. `draw` is a uniform random number for the jitter of a back-off.
    pub fn handle(&mut self, input: SessionInput, now: Instant, draw: u32) {
        match input {
            SessionInput::Opened => self.opened(now),
            SessionInput::DialFailed(failure) => {
                if matches!(self.phase, Phase::Dialing) {
                    self.socket_lost(&failure, now, draw);
                }
            }
            SessionInput::Closed(reason) => {
                if matches!(self.phase, Phase::Open(_)) {
                    self.actions.push_back(SessionAction::Close);
                    self.socket_lost(&Failure::new(ErrorKind::Network, reason), now, draw);
                }
            }
            SessionInput::Received(frame) => {
                self.active(now);
                self.received(&frame, now, draw);
            }
            SessionInput::Activity => self.active(now),
            SessionInput::Command(command) => self.command(command),
            SessionInput::Tick => self.tick(now, draw),
        }
        self.join_next(now);
    }

    fn opened(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Dialing) {
            return;
        }
        self.phase = Phase::Open(OpenSocket {
            heartbeat_at: now + HEARTBEAT_INTERVAL,
            unanswered: None,
            active_at: now,
        });
    }

    fn active(&mut self, now: Instant) {
        if let Phase::Open(socket) = &mut self.phase {
            socket.active_at = now;
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
                    self.down(transport, requested(reason), Duration::ZERO);
                }
            }
            (FeedCommand::Reopen(reason), Phase::Open(_)) => {
                self.actions.push_back(SessionAction::Abandon);
                self.channels.iter_mut().for_each(Channel::socket_closed);
                self.all_down(&requested(reason), Duration::ZERO);
                self.dial();
            }
            (FeedCommand::Rejoin(..) | FeedCommand::Reopen(_), _) => {}
            (FeedCommand::Shutdown, phase) => {
                match phase {
                    Phase::Open(_) => {
                        (0..self.channels.len()).for_each(|at| self.leave(at));
                        self.actions.push_back(SessionAction::Close);
                    }
                    Phase::Dialing => self.actions.push_back(SessionAction::Abandon),
                    Phase::Waiting { .. } | Phase::Stopped => {}
                }
                self.phase = Phase::Stopped;
                self.actions.push_back(SessionAction::Stop);
            }
        }
    }

    fn tick(&mut self, now: Instant, draw: u32) {
        match &self.phase {
            Phase::Waiting { dial_at } if *dial_at <= now => self.dial(),
            Phase::Waiting { .. } | Phase::Dialing | Phase::Stopped => {}
            Phase::Open(socket) => {
                let heartbeat_is_due = socket.heartbeat_at <= now;
                if socket.active_at + SILENCE_LIMIT <= now {
                    self.abandon("no message from the server for 60 s", now, draw);
                } else if heartbeat_is_due && socket.unanswered.is_some() {
                    self.abandon("no answer to a heartbeat", now, draw);
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
        let timed_out = |channel: &Channel| channel.timed_out(now);
        for at in 0..self.channels.len() {
            if let Some(what) = self.channels.get(at).and_then(timed_out) {
                self.leave(at);
                self.rejoin_later(at, channel_failed(what), now, draw);
            }
        }
    }

    /// Starts or stops to follow a transport.
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
                self.down(
                    transport,
                    requested("not followed any more"),
                    Duration::ZERO,
                );
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn received(&mut self, frame: &Frame, now: Instant, draw: u32) {
        let Phase::Open(socket) = &mut self.phase else {
            return;
        };
        if frame.topic == SOCKET_TOPIC {
            if frame.event == "phx_reply" && frame.ref_ == socket.unanswered {
                socket.unanswered = None;
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
            "phx_close" => self.rejoin_later(at, channel_failed("closed by the server"), now, draw),
            "phx_error" => self.rejoin_later(at, channel_failed("failed on the server"), now, draw),
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
            let failure = Failure::new(
                ErrorKind::from_realtime_text(text),
                format!("join refused: {}", shorten(text)),
            );
            self.rejoin_later(at, failure, now, draw);
        } else if channel.transport == Transport::Broadcast {
            channel.set_live(join_ref);
            self.emit(FeedEvent::Live(Transport::Broadcast));
        } else if grants_all(response, &self.bindings) {
            channel.state = ChannelState::Joined {
                join_ref,
                deadline: now + SUBSCRIBE_TIMEOUT,
            };
        } else {
            self.leave(at);
            let failure = channel_failed("the answer to the join lacks a table");
            self.rejoin_later(at, failure, now, draw);
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
                channel.set_live(join_ref);
                self.emit(FeedEvent::Live(Transport::Changes));
            }
            (Some("error"), _) => {
                let message = text("message").unwrap_or("no message given");
                let failure = Failure::new(
                    ErrorKind::from_realtime_text(message),
                    format!("subscription ended by the server: {}", shorten(message)),
                );
                self.leave(at);
                self.rejoin_later(at, failure, now, draw);
            }
            _ => {}
        }
    }

    /// The server matches table names with LIKE, so an event may be of another table. One before the answer to the join belongs
    /// to an earlier join.
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
                let reason = "event without a table".to_owned();
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

    /// Joins again after a back-off; over a new socket if this one has failed too often or its key was refused or has expired
    /// (the server checks a key when the socket opens), unless another channel is live on it.
    fn rejoin_later(&mut self, at: usize, failure: Failure, now: Instant, draw: u32) {
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        channel.failed_joins += 1;
        let needs_socket = matches!(failure.kind, ErrorKind::Key | ErrorKind::Expired)
            || channel.failed_joins >= JOINS_PER_SOCKET;
        channel.state = ChannelState::Idle { join_at: None };
        if needs_socket && !self.channels.iter().any(Channel::is_live) {
            self.actions.push_back(SessionAction::Abandon);
            self.redial_later(at, &failure, now, draw);
            return;
        }
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        let (transport, retry_in) = (channel.transport, channel.retry_delay(failure.kind, draw));
        self.defer(at, Some(now + retry_in));
        self.down(transport, failure, retry_in);
    }

    fn defer(&mut self, at: usize, join_at: Option<Instant>) {
        if let Some(channel) = self.channels.get_mut(at) {
            channel.state = ChannelState::Idle { join_at };
        }
    }

    fn abandon(&mut self, reason: &str, now: Instant, draw: u32) {
        self.actions.push_back(SessionAction::Abandon);
        self.socket_lost(&Failure::new(ErrorKind::Network, reason), now, draw);
    }

    /// The socket is closed or could not be opened: the back-off is that of a live channel, if there is one.
    fn socket_lost(&mut self, failure: &Failure, now: Instant, draw: u32) {
        let live = self.channels.iter().position(Channel::is_live);
        self.redial_later(live.unwrap_or(0), failure, now, draw);
    }

    /// Opens a socket after the back-off of the channel `at`, but not before the first deferred join.
    fn redial_later(&mut self, at: usize, failure: &Failure, now: Instant, draw: u32) {
        let mut retry_in = match self.channels.get_mut(at) {
            Some(channel) => channel.retry_delay(failure.kind, draw),
            None => REALTIME.to,
        };
        self.channels.iter_mut().for_each(Channel::socket_closed);
        let first = self.channels.iter().map(Channel::join_at).min().flatten();
        if let Some(join_at) = first {
            retry_in = retry_in.max(join_at.saturating_duration_since(now));
        }
        self.phase = Phase::Waiting {
            dial_at: now + retry_in,
        };
        self.all_down(failure, retry_in);
    }

    fn all_down(&mut self, failure: &Failure, retry_in: Duration) {
        let transports: Vec<Transport> = self
            .channels
            .iter()
            .map(|channel| channel.transport)
            .collect();
        for transport in transports {
            self.down(transport, failure.clone(), retry_in);
        }
    }

    fn down(&mut self, transport: Transport, failure: Failure, retry_in: Duration) {
        self.emit(FeedEvent::Down(Down {
            transport,
            failure,
            retry_in,
        }));
    }

    fn emit(&mut self, event: FeedEvent) {
        self.actions.push_back(SessionAction::Emit(event));
    }

    fn dial(&mut self) {
        self.phase = Phase::Dialing;
        self.actions.push_back(SessionAction::Dial);
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
        channel.state = ChannelState::Joining {
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
        if let Phase::Open(socket) = &mut self.phase {
            socket.heartbeat_at = now + HEARTBEAT_INTERVAL;
            socket.unanswered = Some(ref_.clone());
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
        self.actions.push_back(SessionAction::Send(frame));
    }

    fn next_ref(&mut self) -> String {
        self.last_ref += 1;
        self.last_ref.to_string()
    }
}

fn requested(reason: impl Into<String>) -> Failure {
    Failure::new(ErrorKind::Asked, reason)
}

fn channel_failed(reason: &str) -> Failure {
    Failure::new(ErrorKind::Channel, reason)
}

/// Whether a frame of the topic belongs to this join. Version 2.0.0 has `join_ref`, except in changes; 1.0.0 repeats the ref
/// of the join in `ref`, if at all.
fn belongs_to(frame: &Frame, join_ref: &str) -> bool {
    match (&frame.join_ref, &frame.ref_) {
        (Some(of_join), _) => of_join == join_ref,
        (None, Some(of_push)) => of_push == join_ref,
        (None, None) => true,
    }
}

/// Whether the server's list has each of the tables. Without a list only the confirmation shows it.
fn grants_all(response: &Value, tables: &[FollowedTable]) -> bool {
    let Some(granted) = response.get("postgres_changes").and_then(Value::as_array) else {
        return true;
    };
    let names = |entry: &Value, name: &str, text: &str| {
        entry.get(name).and_then(Value::as_str) == Some(text)
    };
    tables.iter().all(|table| {
        granted.iter().any(|entry| {
            names(entry, "schema", &table.schema) && names(entry, "table", &table.name)
        })
    })
}

/// A text of the server, short enough for a log line.
fn shorten(text: &str) -> String {
    const LONGEST_CHARS: usize = 300;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_CHARS)
        .collect()
}

#[cfg(test)]
mod tests;
