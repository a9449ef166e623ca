//! Broadcasts from the database: which topics a join listens to, and the wire format of a message.
//!
//! Owns the two forms of a broadcast: a binary frame in version 2.0.0, text in 1.0.0. Messages are rows of
//! `realtime.messages`, read by the same slot as all changes. Differs from the real server on purpose: broadcasts from
//! clients are not served, and policies on `realtime.messages` see the role and the topic, but no other claim of a token.

use std::sync::Arc;

use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::{frame::Version, payload::RowChange};
use crate::demo::pgoutput::RowOperation;

/// The schema and the table that messages are inserted into.
pub const MESSAGES: (&str, &str) = ("realtime", "messages");

/// The publication of [`MESSAGES`], named as on the real server.
pub const PUBLICATION: &str = "supabase_realtime_messages_publication";

/// The kind byte of a binary broadcast, and the encoding byte of a payload in JSON.
const KIND: u8 = 4;
const JSON: u8 = 1;

/// The most messages that a join may have replayed, as on the real server.
const REPLAY_MAX: i64 = 25;

/// A topic. A private one and a public one of the same name have nothing in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Without `realtime:`.
    pub name: String,
    /// Whether policies decide who may read it.
    pub private: bool,
}

/// A topic that a join listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSubscription {
    /// The join.
    pub generation: u64,
    /// The topic.
    pub topic: Topic,
    /// The stored messages to send first.
    pub replay: Option<Replay>,
    /// Whether the client wants an event once broadcasts are read.
    pub announce_ready: bool,
}

/// Stored messages that a join asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// From when on, in milliseconds of the Unix epoch.
    pub since: i64,
    /// How many, the latest ones.
    pub limit: i64,
}

/// A message from the database to the listeners of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroadcastMessage {
    /// The event's name.
    pub event: Arc<str>,
    /// The message's id.
    pub id: Arc<str>,
    /// The content, as JSON text.
    pub payload: Arc<str>,
    /// Whether it was replayed from the table.
    pub replayed: bool,
}

impl TopicSubscription {
    /// Reads the `config` of a join. Only private topics are replayed.
    pub fn of(generation: u64, topic: Topic, config: Option<&Value>) -> Self {
        let broadcast = config.and_then(|config| config.get("broadcast"));
        let ready = broadcast.and_then(|broadcast| broadcast.get("replication_ready"));
        Self {
            generation,
            replay: broadcast.filter(|_| topic.private).and_then(Replay::of),
            topic,
            announce_ready: ready == Some(&Value::Bool(true)),
        }
    }
}

impl Topic {
    /// The topic of a join with this name.
    pub fn of(name: &str, config: Option<&Value>) -> Self {
        let private = config.and_then(|config| config.get("private"));
        Self {
            name: name.to_owned(),
            private: private == Some(&Value::Bool(true)),
        }
    }
}

impl Replay {
    /// Reads `replay` of the `config.broadcast` of a join.
    fn of(broadcast: &Value) -> Option<Self> {
        let replay = broadcast.get("replay")?;
        let limit = replay.get("limit").and_then(Value::as_i64);
        Some(Self {
            since: replay.get("since")?.as_i64()?,
            limit: limit.unwrap_or(REPLAY_MAX).clamp(0, REPLAY_MAX),
        })
    }
}

impl BroadcastMessage {
    /// The message of an inserted row, with its topic; none where the row is no message, or not a new one.
    pub fn of_row(row: &RowChange<'_>) -> Option<(Topic, Self)> {
        let table = (row.table.schema.as_str(), row.table.name.as_str());
        if table != MESSAGES || row.row.operation != RowOperation::Insert {
            return None;
        }
        let message = Self {
            event: row.value("event")?.into(),
            id: row.value("id")?.into(),
            payload: row.value("payload").unwrap_or("null").into(),
            replayed: false,
        };
        let topic = Topic {
            name: row.value("topic")?.to_owned(),
            private: row.value("private") == Some("t"),
        };
        Some((topic, message))
    }

    /// A replayed message. Its payload is read and written on the way, as on the real server: numbers with a
    /// fraction are those of a double then, such as `1234.5` for `1234.50`.
    pub fn stored(event: &str, id: &str, payload: &str) -> Self {
        let read = serde_json::from_str(payload).map(through_doubles);
        Self {
            event: event.into(),
            id: id.into(),
            payload: read.map_or_else(|_| payload.into(), |read| read.to_string().into()),
            replayed: true,
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.event.len() + self.id.len() + self.payload.len()
    }

    /// The frame for a client; none where a name is too long for the binary form.
    pub fn frame(&self, version: Version, topic: &str) -> Option<Message> {
        let id = Value::from(&*self.id);
        let meta = if self.replayed {
            format!(r#"{{"id":{id},"replayed":true}}"#)
        } else {
            format!(r#"{{"id":{id}}}"#)
        };
        match version {
            Version::V1 => {
                let (topic, event) = (Value::from(topic), Value::from(&*self.event));
                let payload = &self.payload;
                Some(Message::text(format!(
                    r#"{{"ref":null,"event":"broadcast","topic":{topic},"payload":{{"event":{event},"meta":{meta},"payload":{payload},"type":"broadcast"}}}}"#
                )))
            }
            Version::V2 => {
                let length = |text: &str| u8::try_from(text.len()).ok();
                let header = [
                    KIND,
                    length(topic)?,
                    length(&self.event)?,
                    length(&meta)?,
                    JSON,
                ];
                let parts = [
                    header.as_slice(),
                    topic.as_bytes(),
                    self.event.as_bytes(),
                    meta.as_bytes(),
                    self.payload.as_bytes(),
                ];
                Some(Message::binary(parts.concat()))
            }
        }
    }
}

fn through_doubles(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(Value::Number(number), Value::from)
        }
        Value::Array(items) => items.into_iter().map(through_doubles).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, field)| (name, through_doubles(field)))
            .collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message() -> BroadcastMessage {
        BroadcastMessage {
            event: "ev1".into(),
            id: "7921d494-deb6-47a4-98f1-c3f41357757b".into(),
            payload: r#"{"a": 1}"#.into(),
            replayed: false,
        }
    }

    #[test]
    fn a_broadcast_is_binary_in_the_second_version_as_recorded_from_the_real_server() {
        let mut expected = b"\x04\x0d\x03\x2d\x01realtime:vd:1ev1".to_vec();
        expected.extend_from_slice(br#"{"id":"7921d494-deb6-47a4-98f1-c3f41357757b"}{"a": 1}"#);
        assert_eq!(
            message().frame(Version::V2, "realtime:vd:1"),
            Some(Message::binary(expected))
        );
    }

    #[test]
    fn a_broadcast_is_text_in_the_first_version_and_says_whether_it_is_replayed() {
        let message = BroadcastMessage {
            replayed: true,
            ..message()
        };
        let text = r#"{"ref":null,"event":"broadcast","topic":"realtime:vd:1","payload":{"event":"ev1","meta":{"id":"7921d494-deb6-47a4-98f1-c3f41357757b","replayed":true},"payload":{"a": 1},"type":"broadcast"}}"#;
        assert_eq!(
            message.frame(Version::V1, "realtime:vd:1"),
            Some(Message::text(text))
        );
    }

    #[test]
    fn a_topic_that_the_binary_form_cannot_hold_is_not_sent() {
        assert_eq!(message().frame(Version::V2, &"x".repeat(256)), None);
    }

    #[test]
    fn a_replay_is_bounded() {
        let asked = json!({ "replay": { "since": 5, "limit": 1_000 } });
        let bounded = Replay {
            since: 5,
            limit: 25,
        };
        assert_eq!(Replay::of(&asked), Some(bounded));
        assert_eq!(Replay::of(&json!({})), None);
    }

    #[test]
    fn a_public_topic_is_not_replayed() {
        let asked = json!({ "broadcast": { "replay": { "since": 5 } }, "private": false });
        let topic = Topic::of("vd:1", Some(&asked));
        assert_eq!(TopicSubscription::of(1, topic, Some(&asked)).replay, None);
    }
}
