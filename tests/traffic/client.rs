//! The product's session with the recorded frames of the real server.
//!
//! Each channel of a recording is one run of a session that follows the same tables, or receives broadcasts if the channel is
//! private. The frames of the server arrive at their recorded times, with the topic and the refs of the session's own joins. If the
//! recorded client joined again, the session has done so itself or is commanded to; if its back-off is longer than the recorded
//! pause, the recording waits. Heartbeats are answered while the recorded socket was open. A run ends where the recorded client left,
//! or where the session wants a join or a socket that the recorded client never requested.
//!
//! Invariant: frames pass through the codec of the product; only topic and refs are changed.

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

use super::recording::{Recorded, RecordedLine, Recording};

/// The random number of every back-off: the middle.
const DRAW: u32 = u32::MAX / 2;
/// What most recordings call their channel.
const USUAL_TOPIC: &str = "visit_distribution_changes";
/// Up to this many channels are listed by name.
const MOST_NAMES: usize = 4;
/// Deadlines of one run at most.
const MOST_TICKS: usize = 10_000;

/// What a session reported in one run.
pub struct SessionRun {
    /// The connection and the topic, as recorded.
    pub channel: String,
    /// Its events in order. Changes in a row are counted.
    pub events: String,
}

/// Plays the recording: one run for each channel. `as_one`: its connections are those of one client that reconnected.
pub fn replay(recording: &Recording, as_one: bool) -> Vec<SessionRun> {
    let mut runs = Vec::new();
    for (connections, topic) in channels(recording, as_one) {
        let lines: Vec<&RecordedLine> = recording
            .lines
            .iter()
            .filter(|line| connections.contains(&line.connection) && !is_note(line))
            .collect();
        let mut player = Player::new(&lines, topic.as_deref());
        player.play(&lines);
        runs.push(SessionRun {
            channel: label(&connections, topic.as_deref()),
            events: player.report(),
        });
    }
    runs
}

/// The connection and the topic, without usual names.
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
        let of_client = |line: &&RecordedLine| connections.contains(&line.connection);
        let lines: Vec<&RecordedLine> = recording.lines.iter().filter(of_client).collect();
        let mut topics: Vec<String> = Vec::new();
        for join in lines.iter().filter_map(|line| join_of(line)) {
            if !topics.contains(&join.topic) {
                topics.push(join.topic);
            }
        }
        let refused = lines
            .iter()
            .any(|line| matches!(line.what, Recorded::Refused { .. }));
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

fn is_note(line: &RecordedLine) -> bool {
    matches!(line.what, Recorded::Note(_))
}

fn join_of(line: &RecordedLine) -> Option<Frame> {
    let Recorded::Sent(text) = &line.what else {
        return None;
    };
    let frame = Frame::decode_text(text).ok()?;
    (frame.event == "phx_join").then_some(frame)
}

/// A session, the recorded socket, and its events.
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
    /// Joins of the recording that the session has not made yet.
    joins_left: usize,
    /// Sockets of the recording that the session has not opened yet.
    sockets_left: usize,
    /// The refs of the recorded joins on this socket, each with that of the session.
    joins: Vec<(String, String)>,
    /// The ref of the last join, until it is paired.
    unpaired: Option<String>,
    events: Vec<(FeedEvent, bool)>,
    /// Broadcasts of other applications, and those of them that were replayed.
    others: (usize, usize),
    /// The session wants what was not recorded.
    over: bool,
}

impl Player {
    fn new(lines: &[&RecordedLine], topic: Option<&str>) -> Self {
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
                .filter(|line| matches!(line.what, Recorded::Opened | Recorded::Refused { .. }))
                .count(),
            joins: Vec::new(),
            unpaired: None,
            events: Vec::new(),
            others: (0, 0),
            over: false,
        }
    }

    fn play(&mut self, lines: &[&RecordedLine]) {
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
                Recorded::Connect { .. } => answered = false,
                Recorded::Opened => {
                    (left, answered) = (false, true);
                    self.dialled();
                    self.open = true;
                    self.joins.clear();
                    self.input(SessionInput::Opened);
                }
                Recorded::Refused { .. } if answered => self.sockets_left -= 1,
                Recorded::Refused { status, body } => {
                    (left, answered) = (false, true);
                    self.dialled();
                    self.input(refusal(*status, body));
                }
                Recorded::Sent(_) => self.recorded_sent(line),
                Recorded::Received(text) if !left => self.receive(Frame::decode_text(text).ok()),
                Recorded::ReceivedBinary(bytes) if !left => {
                    self.receive(Frame::decode_binary(bytes).ok());
                }
                Recorded::Left => left = true,
                Recorded::Closed { code } if !left && self.open => {
                    self.open = false;
                    let reason = match code {
                        Some(code) => format!("the server closed the socket with {code}"),
                        None => "the connection broke".to_owned(),
                    };
                    self.input(SessionInput::Closed(reason));
                }
                Recorded::Closed { .. } => self.open = false,
                Recorded::Received(_)
                | Recorded::ReceivedBinary(_)
                | Recorded::SentOther
                | Recorded::Note(_) => {}
            }
        }
    }

    /// The recorded client has its answer: waits until the session has requested a socket too.
    fn dialled(&mut self) {
        self.wait_until(|player| player.dialing);
        self.sockets_left -= 1;
        self.dialing = false;
    }

    /// The recorded client joins: the session does too, if it has not already.
    fn recorded_sent(&mut self, line: &RecordedLine) {
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

    /// The ref of the session for a recorded one. Other pushes get a ref that the session never uses.
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

    /// Lets time pass until this holds.
    fn wait_until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..MOST_TICKS {
            if holds(self) || self.over {
                return;
            }
            let (deadline, _) = self.session.next_deadline().expect("a deadline");
            self.tick(deadline);
        }
        panic!("the session never retries");
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

    fn report(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut changes = ChangeRun::default();
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
struct ChangeRun {
    count: usize,
    ids: BTreeSet<String>,
    damaged: usize,
}

impl ChangeRun {
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

/// Groups runs with the same events: their channels and the events.
pub fn grouped(runs: Vec<SessionRun>) -> Vec<(String, String)> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for run in runs {
        groups.entry(run.events).or_default().push(run.channel);
    }
    let named = groups.into_iter().map(|(events, mut channels)| {
        channels.sort();
        let names = match channels.len() {
            count if count > MOST_NAMES => format!("{count} channels"),
            _ => channels.join(", "),
        };
        (names, events)
    });
    named.collect()
}
