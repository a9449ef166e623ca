//! The codec of the Phoenix channel protocol: messages of the socket to [`Frame`]s and back.
//!
//! Decodes both serializers, 2.0.0 (`[join_ref, ref, topic, event, payload]`) and 1.0.0 (an object with those names), and
//! the binary broadcast of 2.0.0; encodes 2.0.0. Unknown events are frames like any other.
//!
//! Invariants: no input panics; what is encoded decodes to the same frame; no error and no `Debug` output shows a payload,
//! since that of a join contains the access token.

use std::fmt;

use serde_json::{Map, Value, json};
use thiserror::Error;

/// The version in the query of the socket's URL (`vsn`).
pub const PROTOCOL_VERSION: &str = "2.0.0";

/// The kind byte of a broadcast, the only binary message that the server sends.
const BROADCAST_KIND: u8 = 4;
/// The encoding byte of a binary broadcast whose payload is JSON.
const JSON_ENCODING: u8 = 1;

/// One message of the Phoenix channel protocol.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The ref of the channel's join; absent in frames of the socket itself, in database changes and in version 1.0.0.
    pub join_ref: Option<String>,
    /// The sender's number of this message; its reply repeats it.
    pub ref_: Option<String>,
    /// The channel, such as `realtime:visit-pacer`, or `phoenix` for the socket itself.
    pub topic: String,
    /// Such as `phx_reply`.
    pub event: String,
    /// The content of the event.
    pub payload: Value,
}

/// Why a message is not a frame. The session ignores such messages.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The text is not JSON.
    #[error("expected a frame in JSON, found other text ({0})")]
    Json(#[from] serde_json::Error),
    /// The JSON is not a frame.
    #[error("expected a frame of version 2.0.0 or 1.0.0, found JSON without a valid {0}")]
    Shape(&'static str),
    /// A binary message that is shorter than its header says.
    #[error("expected a whole binary broadcast, found one truncated in its {0}")]
    Truncated(&'static str),
    /// A binary message that is not a broadcast.
    #[error("expected a binary broadcast (kind 4), found a message of kind {0}")]
    Kind(u8),
    /// A binary broadcast whose payload is not JSON.
    #[error("expected a binary broadcast with a JSON payload, found encoding {0}")]
    Encoding(u8),
}

impl Frame {
    /// Decodes a text message of either version.
    pub fn decode_text(text: &str) -> Result<Self, FrameError> {
        match serde_json::from_str(text)? {
            Value::Array(parts) => Self::from_array(parts),
            Value::Object(fields) => Self::from_object(fields),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Err(FrameError::Shape("array or object"))
            }
        }
    }

    /// Decodes a binary message: `4 | topic length | event length | metadata length | encoding |
    /// topic | event | metadata | payload`, one byte each for the first five. The frame is
    /// the one that version 1.0.0 sends in its place.
    pub fn decode_binary(bytes: &[u8]) -> Result<Self, FrameError> {
        let kind = *bytes.first().ok_or(FrameError::Truncated("header"))?;
        if kind != BROADCAST_KIND {
            return Err(FrameError::Kind(kind));
        }
        let (&[_, topic_length, event_length, meta_length, encoding], rest) = bytes
            .split_first_chunk::<5>()
            .ok_or(FrameError::Truncated("header"))?;
        let (topic, rest) = take_text(rest, topic_length, "topic")?;
        let (event, rest) = take_text(rest, event_length, "event")?;
        let (meta, payload) = take(rest, meta_length, "metadata")?;
        if encoding != JSON_ENCODING {
            return Err(FrameError::Encoding(encoding));
        }

        let payload: Value = serde_json::from_slice(payload)?;
        let meta: Value = if meta.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(meta)?
        };
        Ok(Self {
            join_ref: None,
            ref_: None,
            topic: topic.to_owned(),
            event: "broadcast".to_owned(),
            payload: json!({
                "type": "broadcast", "event": event, "meta": meta, "payload": payload,
            }),
        })
    }

    /// Encodes the frame as a text message of version 2.0.0.
    pub fn encode(&self) -> String {
        json!([
            self.join_ref,
            self.ref_,
            self.topic,
            self.event,
            self.payload
        ])
        .to_string()
    }

    fn from_array(parts: Vec<Value>) -> Result<Self, FrameError> {
        let Ok([join_ref, ref_, topic, event, payload]) = <[Value; 5]>::try_from(parts) else {
            return Err(FrameError::Shape("number of parts (five)"));
        };
        Self::from_parts(join_ref, ref_, topic, event, payload)
    }

    fn from_object(mut fields: Map<String, Value>) -> Result<Self, FrameError> {
        let mut part = |name| fields.remove(name).unwrap_or(Value::Null);
        Self::from_parts(
            part("join_ref"),
            part("ref"),
            part("topic"),
            part("event"),
            part("payload"),
        )
    }

    fn from_parts(
        join_ref: Value,
        ref_: Value,
        topic: Value,
        event: Value,
        payload: Value,
    ) -> Result<Self, FrameError> {
        Ok(Self {
            join_ref: optional_text(join_ref, "join_ref")?,
            ref_: optional_text(ref_, "ref")?,
            topic: optional_text(topic, "topic")?.ok_or(FrameError::Shape("topic"))?,
            event: optional_text(event, "event")?.ok_or(FrameError::Shape("event"))?,
            payload,
        })
    }
}

/// Everything but the payload, which may contain a token or rows.
impl fmt::Debug for Frame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Frame")
            .field("join_ref", &self.join_ref)
            .field("ref_", &self.ref_)
            .field("topic", &self.topic)
            .field("event", &self.event)
            .finish_non_exhaustive()
    }
}

fn optional_text(part: Value, name: &'static str) -> Result<Option<String>, FrameError> {
    match part {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(FrameError::Shape(name))
        }
    }
}

fn take<'a>(
    bytes: &'a [u8],
    length: u8,
    name: &'static str,
) -> Result<(&'a [u8], &'a [u8]), FrameError> {
    bytes
        .split_at_checked(usize::from(length))
        .ok_or(FrameError::Truncated(name))
}

fn take_text<'a>(
    bytes: &'a [u8],
    length: u8,
    name: &'static str,
) -> Result<(&'a str, &'a [u8]), FrameError> {
    let (text, rest) = take(bytes, length, name)?;
    let text = str::from_utf8(text).ok().ok_or(FrameError::Shape(name))?;
    Ok((text, rest))
}

#[cfg(test)]
mod tests;
