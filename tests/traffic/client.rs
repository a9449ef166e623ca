//! Our client's session before what the real server once sent.
//!
//! Each channel of a recording is one life of a session that follows the same tables, or listens to
//! broadcasts where the channel is private. The server's frames reach it at their times, under our
//! topic and the refs of our own joins. Where the
//! recorded client joined again, ours has done so by itself or is asked to; where our back-off is
//! longer than the recorded pause, the recording waits. Heartbeats are ours, and answered while the
//! recorded socket was open. A life ends where the recorded client left, or where our session wants
//! a join or a socket that the recorded client never asked for.
//!
//! Invariant: frames go through the codec of the product and nothing of them is repaired, but for
//! topic and refs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use visit_pacer::domain::transport::Transport;
use visit_pacer::{
    domain::error_policy::{ErrorKind, Failure},
    realtime::{
        Broadcast, FeedCommand, FeedEvent, FollowedTable,
        frame::Frame,
        session::{BROADCAST_TOPIC, Session, SessionAction, SessionInput, TOPIC},
    },
};

use super::recording::{Line, Recording, What};

/// The jitter of every back-off: the middle.
const DRAW: u32 = u32::MAX / 2;
/// What most recordings call their channel.
const USUAL_TOPIC: &str = "visit_distribution_changes";
/// Channels that are listed by name; more are counted.
const MOST_NAMES: usize = 4;
/// Deadlines that one life may meet.
const MOST_TICKS: usize = 10_000;

/// What a session told in one life.
pub struct Life {
    /// The connection and the topic, as recorded.
    pub channel: String,
    /// What it told, in order; repeated changes are counted.
    pub told: String,
}

/// Plays the recording: one life a channel. `as_one`: its connections are those of one client that
/// came back, not of several clients.
pub fn replay(recording: &Recording, as_one: bool) -> Vec<Life> {
    let mut lives = Vec::new();
    for (connections, topic) in channels(recording, as_one) {
        let lines: Vec<&Line> = recording
            .lines
            .iter()
            .filter(|line| connections.contains(&line.connection) && !is_note(line))
            .collect();
        let mut player = Player::new(&lines, topic.as_deref());
        player.play(&lines);
        lives.push(Life {
            channel: label(&connections, topic.as_deref()),
            told: player.told(),
        });
    }
    lives
}

/// The connection and the topic, without what goes without saying.
fn label(connections: &[String], topic: Option<&str>) -> String {
    let connection = connections.first().map_or("", String::as_str);
    let name = topic.unwrap_or_default().trim_start_matches("realtime:");
    if name == connection || name == USUAL_TOPIC {
        connection.to_owned()
    } else {
        format!("{connection} {name}").trim().to_owned()
    }
}

/// The channels that were joined, and the connections without any that were refused.
fn channels(recording: &Recording, as_one: bool) -> Vec<(Vec<String>, Option<String>)> {
    let mut found: Vec<(Vec<String>, Option<String>)> = Vec::new();
    let mut all: Vec<String> = Vec::new();
    for line in recording.lines.iter().filter(|line| !is_note(line)) {
        if !all.contains(&line.connection) {
            all.push(line.connection.clone());
        }
    }
    let clients: Vec<Vec<String>> = if as_one {
        vec![all]
    } else {
        all.into_iter().map(|connection| vec![connection]).collect()
    };
    for connections in clients {
        let of_client = |line: &&Line| connections.contains(&line.connection);
        let lines: Vec<&Line> = recording.lines.iter().filter(of_client).collect();
        let mut topics: Vec<String> = Vec::new();
        for join in lines.iter().filter_map(|line| join_of(line)) {
            if !topics.contains(&join.topic) {
                topics.push(join.topic);
            }
        }
        let refused = lines
            .iter()
            .any(|line| matches!(line.what, What::Refused { .. }));
        if topics.is_empty() && refused {
            found.push((connections.clone(), None));
        }
        found.extend(
            topics
                .into_iter()
                .map(|topic| (connections.clone(), Some(topic))),
        );
    }
    found
}

fn is_note(line: &Line) -> bool {
    matches!(line.what, What::Note(_))
}

fn join_of(line: &Line) -> Option<Frame> {
    let What::Sent(text) = &line.what else {
        return None;
    };
    let frame = Frame::decode_text(text).ok()?;
    (frame.event == "phx_join").then_some(frame)
}

/// A session, the recorded socket below it, and what it told.
struct Player {
    session: Session,
    topic: String,
    transport: Transport,
    start: Instant,
    now: Instant,
    /// The session waits for a socket.
    dialing: bool,
    /// The recorded socket is open.
    open: bool,
    /// Joins of the recording that have not been answered by one of ours yet.
    joins_left: usize,
    /// Sockets of the recording that are still to come.
    sockets_left: usize,
    /// The recorded joins on this socket, each with the ref of ours that stands for it.
    joins: Vec<(String, String)>,
    /// The ref of our last join, until it is paired.
    unpaired: Option<String>,
    events: Vec<(FeedEvent, bool)>,
    /// Broadcasts that the codec read and that are not of our making, and those of them that were told again.
    others: (usize, usize),
    /// The session wants what the recording does not have.
    over: bool,
}

impl Player {
    fn new(lines: &[&Line], topic: Option<&str>) -> Self {
        let topic = topic.unwrap_or_default().to_owned();
        let joins: Vec<Frame> = lines
            .iter()
            .filter_map(|line| join_of(line))
            .filter(|join| join.topic == topic)
            .collect();
        let start = Instant::now();
        let private = |join: &Frame| join.payload.pointer("/config/private") == Some(&true.into());
        let (session, transport) = if joins.first().is_some_and(private) {
            let session = Session::new(Vec::new(), None).with_broadcasts();
            (session, Transport::Broadcast)
        } else {
            (
                Session::new(tables(joins.first()), None),
                Transport::Changes,
            )
        };
        Self {
            session,
            transport,
            topic,
            start,
            now: start,
            dialing: false,
            open: false,
            joins_left: joins.len(),
            sockets_left: lines
                .iter()
                .filter(|line| matches!(line.what, What::Opened | What::Refused { .. }))
                .count(),
            joins: Vec::new(),
            unpaired: None,
            events: Vec::new(),
            others: (0, 0),
            over: false,
        }
    }

    fn play(&mut self, lines: &[&Line]) {
        let mut left = false;
        let mut answered = false;
        self.drain();
        for line in lines {
            if !left {
                self.advance(line.at);
            }
            if self.over {
                return;
            }
            match &line.what {
                What::Connect { .. } => answered = false,
                What::Opened => {
                    (left, answered) = (false, true);
                    self.dialled();
                    self.open = true;
                    self.joins.clear();
                    self.input(SessionInput::Opened);
                }
                What::Refused { .. } if answered => self.sockets_left -= 1,
                What::Refused { status, body } => {
                    (left, answered) = (false, true);
                    self.dialled();
                    self.input(refusal(*status, body));
                }
                What::Sent(_) => self.recorded_sent(line),
                What::Received(text) if !left => self.receive(Frame::decode_text(text).ok()),
                What::ReceivedBinary(bytes) if !left => {
                    self.receive(Frame::decode_binary(bytes).ok());
                }
                What::Left => left = true,
                What::Closed { code } if !left && self.open => {
                    self.open = false;
                    let reason = match code {
                        Some(code) => format!("the server closed the socket with {code}"),
                        None => "the connection broke".to_owned(),
                    };
                    self.input(SessionInput::Closed(reason));
                }
                What::Closed { .. } => self.open = false,
                What::Received(_) | What::ReceivedBinary(_) | What::SentOther | What::Note(_) => {}
            }
        }
    }

    /// The recorded client has its answer: ours has asked for a socket, or soon does.
    fn dialled(&mut self) {
        self.wait_until(|player| player.dialing);
        self.sockets_left -= 1;
        self.dialing = false;
    }

    /// The recorded client joins: so does ours, if it has not by itself.
    fn recorded_sent(&mut self, line: &Line) {
        let Some(join) = join_of(line).filter(|join| join.topic == self.topic) else {
            return;
        };
        if self.unpaired.is_none() {
            let reason = "as recorded".to_owned();
            self.input(SessionInput::Command(FeedCommand::Rejoin(
                self.transport,
                reason,
            )));
        }
        self.wait_until(|player| player.unpaired.is_some());
        self.joins_left -= 1;
        let ours = self.unpaired.take().unwrap_or_default();
        self.joins.push((join.ref_.unwrap_or_default(), ours));
    }

    fn receive(&mut self, frame: Option<Frame>) {
        let Some(mut frame) = frame else {
            return self.input(SessionInput::Activity);
        };
        if frame.topic == "phoenix" {
            return;
        }
        if frame.topic == self.topic {
            let broadcast = self.transport == Transport::Broadcast && frame.event == "broadcast";
            if broadcast && Broadcast::read(&frame.payload).is_none() {
                self.others.0 += 1;
                self.others.1 += usize::from(Broadcast::is_replayed(&frame.payload));
            }
            let ours = match self.transport {
                Transport::Changes => TOPIC,
                Transport::Broadcast => BROADCAST_TOPIC,
            };
            ours.clone_into(&mut frame.topic);
            frame.ref_ = frame.ref_.map(|ref_| self.ours(&ref_));
            frame.join_ref = frame.join_ref.map(|ref_| self.ours(&ref_));
        }
        self.input(SessionInput::Received(frame));
    }

    /// Our ref in place of a recorded one. A push that is not ours has a ref that we never use.
    fn ours(&self, recorded: &str) -> String {
        let paired = self
            .joins
            .iter()
            .rev()
            .find(|(theirs, _)| theirs == recorded);
        paired.map_or_else(|| format!("recorded {recorded}"), |(_, ours)| ours.clone())
    }

    fn advance(&mut self, at: Duration) {
        let until = self.start + at;
        for _ in 0..MOST_TICKS {
            match self.session.next_deadline() {
                Some((deadline, _)) if deadline <= until && !self.over => self.tick(deadline),
                _ => {
                    self.now = self.now.max(until);
                    return;
                }
            }
        }
        panic!("expected the session to wait, found {MOST_TICKS} deadlines by {at:?}");
    }

    /// Lets the session's own time pass until this holds.
    fn wait_until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..MOST_TICKS {
            if holds(self) || self.over {
                return;
            }
            let (deadline, _) = self.session.next_deadline().expect("the session goes on");
            self.tick(deadline);
        }
        panic!("expected the session to try again, it never did");
    }

    fn tick(&mut self, deadline: Instant) {
        let waited = deadline.saturating_duration_since(self.now);
        self.now += waited;
        self.input(SessionInput::Tick);
    }

    fn input(&mut self, input: SessionInput) {
        self.session.handle(input, self.now, DRAW);
        self.drain();
    }

    fn drain(&mut self) {
        let mut new_socket = false;
        let first = self.events.len();
        while let Some(action) = self.session.poll_action() {
            match action {
                SessionAction::Dial if self.open => {
                    self.session.handle(SessionInput::Opened, self.now, DRAW);
                }
                SessionAction::Dial => {
                    self.dialing = true;
                    self.over |= self.sockets_left == 0;
                }
                SessionAction::Send(frame) => self.sent(&frame),
                SessionAction::Close | SessionAction::Abandon => new_socket = true,
                SessionAction::Emit(event) => self.events.push((event, false)),
                SessionAction::Stop => {}
            }
        }
        for (_, over_new_socket) in self.events.iter_mut().skip(first) {
            *over_new_socket = new_socket;
        }
    }

    fn sent(&mut self, frame: &Frame) {
        match frame.event.as_str() {
            "phx_join" => {
                self.over |= self.joins_left == 0;
                self.unpaired.clone_from(&frame.ref_);
            }
            "heartbeat" if self.open => {
                let answer = Frame {
                    event: "phx_reply".to_owned(),
                    payload: json!({ "status": "ok", "response": {} }),
                    ..frame.clone()
                };
                self.session
                    .handle(SessionInput::Received(answer), self.now, DRAW);
            }
            _ => {}
        }
    }

    fn told(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut changes = Changes::default();
        for (event, over_new_socket) in &self.events {
            match event {
                FeedEvent::Changed(change) => {
                    changes.count += 1;
                    changes.ids.extend(change.id.map(|id| id.to_string()));
                    changes.damaged += usize::from(change.damage.is_some());
                    continue;
                }
                FeedEvent::Live(_)
                | FeedEvent::Broadcast(..)
                | FeedEvent::Down(_)
                | FeedEvent::Lost(_) => {}
            }
            parts.extend(changes.take());
            match event {
                FeedEvent::Live(_) => parts.push("live".to_owned()),
                FeedEvent::Down(down) => parts.push(format!(
                    "down ({}{})",
                    format!("{:?}", down.failure.kind).to_lowercase(),
                    if *over_new_socket { ", new socket" } else { "" }
                )),
                FeedEvent::Lost(_) => parts.push("lost".to_owned()),
                FeedEvent::Changed(_) | FeedEvent::Broadcast(..) => {}
            }
        }
        parts.extend(changes.take());
        if let (others @ 1.., replayed) = self.others {
            parts.push(format!("{others} broadcasts not ours ({replayed} again)"));
        }
        if parts.is_empty() {
            parts.push("never live".to_owned());
        }
        parts.join(", ")
    }
}

/// Changes in a row.
#[derive(Default)]
struct Changes {
    count: usize,
    ids: BTreeSet<String>,
    damaged: usize,
}

impl Changes {
    fn take(&mut self) -> Option<String> {
        let Self {
            count,
            ids,
            damaged,
        } = std::mem::take(self);
        let damage = match damaged {
            0 => String::new(),
            some => format!(", {some} damaged"),
        };
        (count > 0).then(|| format!("{count} changed ({} ids{damage})", ids.len()))
    }
}

fn refusal(status: Option<u16>, body: &str) -> SessionInput {
    let kind = status.map_or(ErrorKind::Network, |status| {
        ErrorKind::from_http_status(status, body)
    });
    let reason = format!("refused with {status:?}: {body}");
    SessionInput::DialFailed(Failure::new(kind, reason))
}

/// The tables that a recorded join asked for; our own where it named none.
fn tables(join: Option<&Frame>) -> Vec<FollowedTable> {
    let asked = join
        .and_then(|join| join.payload.pointer("/config/postgres_changes"))
        .and_then(Value::as_array);
    let mut tables: Vec<FollowedTable> = Vec::new();
    for entry in asked.into_iter().flatten() {
        if let (Some(schema), Some(table)) = (entry["schema"].as_str(), entry["table"].as_str()) {
            let table = FollowedTable::new(schema, table);
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
    }
    if tables.is_empty() {
        tables.push(FollowedTable::new("public", "visit_distribution"));
    }
    tables
}

/// Lives that told the same, together: which channels, and what they told.
pub fn grouped(lives: Vec<Life>) -> Vec<(String, String)> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for life in lives {
        groups.entry(life.told).or_default().push(life.channel);
    }
    let named = groups.into_iter().map(|(told, mut channels)| {
        channels.sort();
        let names = match channels.len() {
            count if count > MOST_NAMES => format!("{count} channels"),
            _ => channels.join(", "),
        };
        (names, told)
    });
    named.collect()
}
