//! A model of the Realtime server: sockets, on each a channel for either transport, and the frames that it sends, real text
//! and real binary.
//!
//! Owns its side of every socket, the broadcasts that can be replayed, and its faults. Replies keep their order; events of
//! changes and broadcasts may overtake each other. It returns each frame with its delay, and the world delivers it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use visit_pacer::domain::transport::{PerTransport, Transport};

use crate::database::Change;
use crate::dice::Dice;
use crate::seen::Seen;
use crate::world::{MS, SECOND};

const TOPIC: &str = "realtime:visit-pacer";
const BROADCAST_TOPIC: &str = "realtime:visit_pacer";
/// The most broadcasts that one join has replayed.
const REPLAYED: usize = 25;
const CANARY: &str = "visit_pacer_canary";
const DISTRIBUTIONS: &str = "visit_distribution";

/// A socket: of which host, and which of its sockets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SocketId {
    pub host: usize,
    pub number: u32,
}

/// What the server does after a while.
#[derive(Debug)]
pub enum Said {
    Text(SocketId, String),
    Binary(SocketId, Vec<u8>),
    /// It has the subscription of this join ready.
    Subscribed(SocketId, String),
    Closed(SocketId),
}

/// With its delay in microseconds.
pub type Saying = (i64, Said);

#[derive(Default)]
struct Socket {
    channels: PerTransport<Option<Channel>>,
    /// Nothing passes in either direction, and neither side notices.
    half_open: bool,
    /// No event is sent by this transport, whatever is joined.
    stubborn: PerTransport<bool>,
}

struct Channel {
    join_ref: String,
    tables: Vec<String>,
    live: bool,
    /// No event is sent, until it is joined again.
    dead: bool,
}

#[derive(Default)]
pub struct Server {
    sockets: BTreeMap<SocketId, Socket>,
    pub away_until: i64,
    /// Faults happen.
    pub storm: bool,
    pub canary_published: bool,
    /// What was broadcast, with the database's clock in milliseconds.
    stored: Vec<(i64, Broadcast)>,
    pub seen: Seen,
}

/// A broadcast: its event and payload.
#[derive(Clone)]
struct Broadcast {
    event: &'static str,
    payload: Value,
}

impl Server {
    pub fn new() -> Self {
        Self {
            storm: true,
            canary_published: true,
            ..Self::default()
        }
    }

    /// A client connects; the status and text of the refusal, if there is one.
    pub fn opens(
        &mut self,
        id: SocketId,
        now: i64,
        dice: &mut Dice,
    ) -> Option<(u16, &'static str)> {
        let refused = self.storm && dice.percent(15);
        if now < self.away_until || refused {
            self.seen.saw("a socket is refused");
            let refusals = [
                (503, "Service Unavailable"),
                (502, "Bad Gateway"),
                (401, "Unauthorized"),
                (429, "Too many connected users"),
                (403, "Realtime disabled: TenantNotFound"),
            ];
            // A refused key or quota is retried slowly, so it is rarer.
            let most = if dice.percent(20) { refusals.len() } else { 2 };
            return dice.pick(&refusals[..most]);
        }
        self.sockets.insert(id, Socket::default());
        None
    }

    /// The client has ended, or abandoned the socket.
    pub fn closed(&mut self, id: SocketId) {
        self.sockets.remove(&id);
    }

    /// A frame of the client.
    pub fn hears(&mut self, id: SocketId, text: &str, dice: &mut Dice) -> Vec<Saying> {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| !socket.half_open) else {
            return Vec::new();
        };
        let frame: Value = serde_json::from_str(text).expect("the client sends JSON");
        let part = |n: usize| frame[n].as_str().unwrap_or_default().to_owned();
        let (join_ref, ref_, topic, event) = (part(0), part(1), part(2), part(3));
        let delay = dice.between(1, 30) * MS;
        let ok = json!({ "status": "ok", "response": {} });
        match event.as_str() {
            "heartbeat" => vec![(delay, reply(id, &Value::Null, &ref_, "phoenix", &ok))],
            "phx_leave" => {
                *socket.channels.of_mut(way_of(&topic)) = None;
                vec![(delay, reply(id, &json!(join_ref), &ref_, &topic, &ok))]
            }
            "phx_join" => {
                let asked = frame[4]["config"]["postgres_changes"]
                    .as_array()
                    .expect("bindings");
                let tables = asked
                    .iter()
                    .filter_map(|t| t["table"].as_str())
                    .map(str::to_owned);
                let transport = way_of(&topic);
                let channel = Channel {
                    join_ref,
                    tables: tables.collect(),
                    live: transport == Transport::Broadcast,
                    dead: transport == Transport::Broadcast && socket.stubborn.broadcast,
                };
                let since = frame[4]["config"]["broadcast"]["replay"]["since"].as_i64();
                let mut said = self.joins(id, transport, channel, dice);
                said.extend(
                    since
                        .into_iter()
                        .flat_map(|since| self.again(id, since, dice)),
                );
                said
            }
            other => panic!("the client sends {other}"),
        }
    }

    fn joins(
        &mut self,
        id: SocketId,
        transport: Transport,
        channel: Channel,
        dice: &mut Dice,
    ) -> Vec<Saying> {
        let topic = topic_of(transport);
        let delay = dice.between(1, 40) * MS;
        let join_ref = channel.join_ref.clone();
        let of_join = json!(join_ref);
        let failure = if self.storm { dice.between(0, 99) } else { 100 };
        match failure {
            0..=5 => {
                self.seen.saw("a join is refused");
                let reasons = [
                    "UnknownErrorOnChannel: %{}",
                    "RealtimeRestarting",
                    "ClientJoinRateLimitReached: Too many joins per second",
                    "Unauthorized: You do not have permissions",
                ];
                let most = if dice.percent(20) { reasons.len() } else { 2 };
                let reason = dice.pick(&reasons[..most]).unwrap_or_default();
                let no = json!({ "status": "error", "response": { "reason": reason } });
                vec![(delay, reply(id, &of_join, &join_ref, topic, &no))]
            }
            6..=7 => {
                self.seen.saw("a join is not answered");
                Vec::new()
            }
            _ => {
                let granted: Vec<Value> = channel.tables.iter().map(|table| {
                    json!({ "id": 43_093_599, "event": "*", "schema": "public", "table": table })
                }).collect();
                let yes = json!({ "status": "ok", "response": { "postgres_changes": granted } });
                let mut said = vec![(delay, reply(id, &of_join, &join_ref, topic, &yes))];
                if transport == Transport::Broadcast {
                    // Events arrive from the reply on.
                } else if failure == 8 {
                    self.seen.saw("a subscription is not confirmed");
                } else {
                    let ready = delay + dice.between(5, 2_000) * MS;
                    said.push((ready, Said::Subscribed(id, join_ref)));
                }
                if let Some(socket) = self.sockets.get_mut(&id) {
                    *socket.channels.of_mut(transport) = Some(channel);
                }
                said
            }
        }
    }

    /// The subscription of a join is ready, or fails.
    pub fn subscribed(&mut self, id: SocketId, join_ref: &str) -> Option<Said> {
        let canary = self.canary_published;
        let socket = self.sockets.get_mut(&id)?;
        let stubborn = socket.stubborn.changes;
        let channel = socket
            .channels
            .changes
            .as_mut()
            .filter(|channel| channel.join_ref == join_ref)?;
        if channel
            .tables
            .iter()
            .any(|table| table == CANARY && !canary)
        {
            self.seen.saw("a table cannot be followed");
            let why = "Unable to subscribe to changes with given parameters. Please check Realtime is enabled \
                       for the given connect parameters: [event: *, schema: public, table: visit_pacer_canary]";
            return Some(system(id, Transport::Changes, join_ref, "error", why));
        }
        channel.live = true;
        channel.dead = stubborn;
        let message = "Subscribed to PostgreSQL";
        Some(system(id, Transport::Changes, join_ref, "ok", message))
    }

    /// A change was committed: each subscriber gets an event, except for faults.
    pub fn publish(&mut self, change: &Change, dice: &mut Dice) -> Vec<Saying> {
        self.tell(DISTRIBUTIONS, &data(change, dice), dice)
    }

    pub fn publish_canary(&mut self, dice: &mut Dice) -> Vec<Saying> {
        if !self.canary_published {
            return Vec::new();
        }
        let record = json!({ "id": true, "touched_by": null });
        let data = json!({ "schema": "public", "table": CANARY, "type": "UPDATE", "record": record, "errors": null });
        self.tell(CANARY, &data, dice)
    }

    /// A change was committed, and a trigger broadcasts it: each listener gets it, except for faults.
    pub fn broadcast(&mut self, change: &Change, clock: i64, dice: &mut Dice) -> Vec<Saying> {
        let version = (change.kind != "DELETE").then_some(change.version);
        let payload = json!({ "distribution_id": change.id, "config_version": version.flatten() });
        let event = "row";
        self.send(&Broadcast { event, payload }, clock, dice)
    }

    pub fn broadcast_canary(&mut self, clock: i64, dice: &mut Dice) -> Vec<Saying> {
        let payload = json!({ "sent_at": clock / MS });
        let event = "canary";
        self.send(&Broadcast { event, payload }, clock, dice)
    }

    fn send(&mut self, broadcast: &Broadcast, clock: i64, dice: &mut Dice) -> Vec<Saying> {
        self.stored.push((clock / MS, broadcast.clone()));
        let mut said = Vec::new();
        for (id, socket) in &self.sockets {
            let sound = |channel: &Channel| channel.live && !channel.dead;
            if socket.half_open || !socket.channels.broadcast.as_ref().is_some_and(sound) {
                continue;
            }
            let delay = dice.between(1, 50) * MS;
            let whole = broadcast.frame(*id, false);
            let failure = if self.storm { dice.between(0, 99) } else { 100 };
            match failure {
                0..=2 => self.seen.saw("a broadcast is dropped"),
                3..=6 => {
                    self.seen.saw("a broadcast is sent twice");
                    let again = delay + dice.between(0, 900) * MS;
                    said.push((again, broadcast.frame(*id, false)));
                    said.push((delay, whole));
                }
                7..=8 => {
                    self.seen.saw("a broadcast overtakes another");
                    said.push((dice.between(300, 5_000) * MS, whole));
                }
                9 => {
                    self.seen.saw("a broadcast does not name its row");
                    let nameless = Broadcast {
                        event: broadcast.event,
                        payload: Value::Null,
                    };
                    said.push((delay, nameless.frame(*id, false)));
                }
                10 => {
                    self.seen.saw("a binary message is broken");
                    let Said::Binary(id, mut bytes) = whole else {
                        continue;
                    };
                    bytes.truncate(bytes.len() / 2);
                    said.push((delay, Said::Binary(id, bytes)));
                }
                _ => said.push((delay, whole)),
            }
        }
        said
    }

    /// Replays the broadcasts since then, in any order, after the reply to the join.
    fn again(&mut self, id: SocketId, since: i64, dice: &mut Dice) -> Vec<Saying> {
        let joined = |socket: &Socket| socket.channels.broadcast.is_some();
        if !self.sockets.get(&id).is_some_and(joined) {
            return Vec::new();
        }
        let stored = self.stored.iter().rev().filter(|(at, _)| *at >= since);
        let frames: Vec<Said> = stored
            .take(REPLAYED)
            .map(|(_, broadcast)| broadcast.frame(id, true))
            .collect();
        if !frames.is_empty() {
            self.seen.saw("broadcasts are told again");
        }
        let mut delayed = |said| (dice.between(40, 60) * MS, said);
        frames.into_iter().map(&mut delayed).collect()
    }

    fn tell(&mut self, table: &str, data: &Value, dice: &mut Dice) -> Vec<Saying> {
        let mut said = Vec::new();
        for (id, socket) in &self.sockets {
            let hears = socket.channels.changes.as_ref().is_some_and(|channel| {
                channel.live && !channel.dead && channel.tables.iter().any(|name| name == table)
            });
            if socket.half_open || !hears {
                continue;
            }
            let delay = dice.between(1, 300) * MS;
            let failure = if self.storm { dice.between(0, 99) } else { 100 };
            match failure {
                0..=2 => self.seen.saw("an event is dropped"),
                3..=6 => {
                    self.seen.saw("an event is sent twice");
                    let again = delay + dice.between(0, 900) * MS;
                    said.push((again, event(*id, data)));
                    said.push((delay, event(*id, data)));
                }
                7..=8 => {
                    self.seen.saw("an event overtakes another");
                    said.push((dice.between(300, 5_000) * MS, event(*id, data)));
                }
                9..=10 => {
                    let kind = dice.between(0, 2);
                    said.push((
                        delay,
                        Self::damaged(&mut self.seen, *id, data.clone(), kind),
                    ));
                }
                _ => said.push((delay, event(*id, data))),
            }
        }
        said
    }

    /// An incomplete event.
    fn damaged(seen: &mut Seen, id: SocketId, mut data: Value, kind: i64) -> Said {
        let whole = event(id, &data);
        match kind {
            0 => {
                seen.saw("an event is cut short");
                data["errors"] = json!(["Error 413: Payload Too Large"]);
                event(id, &data)
            }
            1 => {
                seen.saw("an event lacks its id");
                data["record"] = json!({ "total_visits": 7 });
                data["old_record"] = Value::Null;
                event(id, &data)
            }
            _ => {
                seen.saw("a message is broken");
                let Said::Text(_, text) = whole else {
                    return whole;
                };
                Said::Text(id, text.chars().take(text.len() / 2).collect())
            }
        }
    }

    /// A fault of one socket of a host.
    pub fn break_socket(&mut self, host: usize, dice: &mut Dice) -> Vec<Saying> {
        let Some((id, socket)) = self.sockets.iter_mut().rfind(|(id, _)| id.host == host) else {
            return Vec::new();
        };
        let id = *id;
        let delay = dice.between(0, 20) * MS;
        let transport = dice.pick(&Transport::ALL).expect("two ways");
        let joined = socket.channels.of_mut(transport);
        let join_ref = joined.as_ref().map(|channel| channel.join_ref.clone());
        let (what, said) = match (dice.between(0, 7), join_ref) {
            (0, _) => ("a socket is closed", Some(Said::Closed(id))),
            (1, _) => {
                socket.half_open = true;
                ("a socket is half open", None)
            }
            (2, Some(join)) => {
                *joined = None;
                let text = json!([join, join, topic_of(transport), "phx_close", {}]).to_string();
                ("a channel is closed", Some(Said::Text(id, text)))
            }
            (3, Some(join)) => {
                *joined = None;
                let why = dice.pick(&[
                    "Token has expired 0 seconds ago",
                    "Too many messages per second",
                    "the tenant database is away",
                ]);
                (
                    "a subscription ends with an error",
                    Some(system(
                        id,
                        transport,
                        &join,
                        "error",
                        why.unwrap_or_default(),
                    )),
                )
            }
            (4, Some(join))
                if transport == Transport::Changes
                    && joined.as_ref().is_some_and(|channel| channel.live) =>
            {
                let again = system(id, transport, &join, "ok", "Subscribed to PostgreSQL");
                ("a subscription is confirmed again in mid-life", Some(again))
            }
            (5, Some(_)) => {
                joined.as_mut().expect("joined").dead = true;
                *socket.stubborn.of_mut(transport) = true;
                ("a channel stays dead until there is a new socket", None)
            }
            (6 | 7, Some(_)) => {
                joined.as_mut().expect("joined").dead = true;
                match transport {
                    Transport::Changes => ("a channel is dead while heartbeats pass", None),
                    Transport::Broadcast => {
                        ("a broadcast channel is dead while heartbeats pass", None)
                    }
                }
            }
            _ => return Vec::new(),
        };
        self.seen.saw(what);
        said.map(|said| (delay, said)).into_iter().collect()
    }

    /// The server restarts: every socket ends, and none is accepted for a while.
    pub fn restart(&mut self, now: i64, dice: &mut Dice) -> Vec<Saying> {
        self.seen.saw("the Realtime server restarts");
        self.away_until = now + dice.between(0, 6) * SECOND;
        let all = std::mem::take(&mut self.sockets);
        let closed = all.into_iter().filter(|(_, socket)| !socket.half_open);
        closed
            .map(|(id, _)| (dice.between(0, 500) * MS, Said::Closed(id)))
            .collect()
    }

    /// Whether all committed changes reach the host by this transport.
    pub fn delivers_to(&self, host: usize, transport: Transport) -> bool {
        let last = self.sockets.iter().rfind(|(id, _)| id.host == host);
        last.is_some_and(|(_, socket)| {
            let sound = |channel: &Channel| channel.live && !channel.dead;
            !socket.half_open && socket.channels.of(transport).as_ref().is_some_and(sound)
        })
    }
}

fn reply(id: SocketId, join_ref: &Value, ref_: &str, topic: &str, payload: &Value) -> Said {
    Said::Text(
        id,
        json!([join_ref, ref_, topic, "phx_reply", payload]).to_string(),
    )
}

fn system(id: SocketId, transport: Transport, join_ref: &str, status: &str, message: &str) -> Said {
    let payload = json!({ "status": status, "extension": "postgres_changes", "message": message, "channel": "visit-pacer" });
    Said::Text(
        id,
        json!([join_ref, null, topic_of(transport), "system", payload]).to_string(),
    )
}

fn topic_of(transport: Transport) -> &'static str {
    match transport {
        Transport::Changes => TOPIC,
        Transport::Broadcast => BROADCAST_TOPIC,
    }
}

fn way_of(topic: &str) -> Transport {
    if topic == BROADCAST_TOPIC {
        Transport::Broadcast
    } else {
        Transport::Changes
    }
}

impl Broadcast {
    /// Its binary frame: the kind 4, the lengths of three texts, 1 for JSON, the texts, the payload.
    fn frame(&self, id: SocketId, replayed: bool) -> Said {
        let meta = if replayed {
            r#"{"replayed":true}"#
        } else {
            "{}"
        };
        let texts = [BROADCAST_TOPIC, self.event, meta];
        let mut bytes = vec![4];
        bytes.extend(texts.map(|text| u8::try_from(text.len()).expect("short")));
        bytes.push(1);
        for text in texts {
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(self.payload.to_string().as_bytes());
        Said::Binary(id, bytes)
    }
}

fn event(id: SocketId, data: &Value) -> Said {
    let payload = json!({ "data": data, "ids": [43_093_599] });
    Said::Text(
        id,
        json!([null, null, TOPIC, "postgres_changes", payload]).to_string(),
    )
}

/// The event of a change; one in five lacks the columns that a publication leaves out.
fn data(change: &Change, dice: &mut Dice) -> Value {
    let row = json!({ "id": change.id });
    let mut data =
        json!({ "schema": "public", "table": DISTRIBUTIONS, "type": change.kind, "errors": null });
    if change.kind == "DELETE" {
        data["old_record"] = row;
        return data;
    }
    data["record"] = row;
    if !dice.percent(20) {
        data["record"]["config_version"] = json!(change.version);
        data["record"]["total_visits"] = json!(9_007_199_254_740_993_i64);
    }
    data
}
