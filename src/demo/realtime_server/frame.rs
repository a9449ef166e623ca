//! The frames of the Phoenix channel protocol as a server reads and writes them.
//!
//! Owns the text form of versions 1.0.0 (objects) and 2.0.0 (arrays). It knows no event and no
//! topic. It shares nothing with the agent's own codec on purpose: one misreading must not hide in
//! both.
//!
//! Invariant: whatever a client sends, reading gives a frame or nothing.

use serde::Deserialize;
use serde_json::Value;

/// The version of the protocol that a client asked for with `vsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `1.0.0`: `{"topic", "event", "payload", "ref", "join_ref"}`.
    V1,
    /// `2.0.0`: `[join_ref, ref, topic, event, payload]`.
    V2,
}

/// A frame that a client sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Incoming {
    /// The join that the frame belongs to, or null.
    #[serde(default)]
    pub join_ref: Value,
    /// What a reply will carry, or null.
    #[serde(rename = "ref")]
    pub reference: Value,
    /// The topic.
    pub topic: String,
    /// The event.
    pub event: String,
    /// The payload.
    pub payload: Value,
}

impl Version {
    /// The version that the value of `vsn` asks for; none is 1.0.0.
    pub fn negotiate(vsn: Option<&str>) -> Option<Self> {
        match vsn {
            None | Some("1.0.0") => Some(Self::V1),
            Some("2.0.0") => Some(Self::V2),
            Some(_) => None,
        }
    }

    /// Reads a text frame; `None` for what a Phoenix server ignores.
    pub fn read(self, text: &str) -> Option<Incoming> {
        match self {
            Self::V1 if !text.trim_start().starts_with('{') => None,
            Self::V1 => serde_json::from_str(text).ok(),
            Self::V2 => {
                let (join_ref, reference, topic, event, payload) =
                    serde_json::from_str(text).ok()?;
                Some(Incoming {
                    join_ref,
                    reference,
                    topic,
                    event,
                    payload,
                })
            }
        }
    }

    /// Writes a frame as text: `join_ref` (which version 1.0.0 does not send), the `ref` of the client's frame that this one
    /// answers, topic, event, and the payload as JSON text.
    pub fn write(
        self,
        (join_ref, reference): (&Value, &Value),
        topic: &str,
        event: &str,
        payload: &str,
    ) -> String {
        let topic = Value::from(topic);
        match self {
            Self::V1 => format!(
                r#"{{"ref":{reference},"event":"{event}","topic":{topic},"payload":{payload}}}"#
            ),
            Self::V2 => format!(r#"[{join_ref},{reference},{topic},"{event}",{payload}]"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HEARTBEAT_V1: &str = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#;
    const HEARTBEAT_V2: &str = r#"[null,"1","phoenix","heartbeat",{}]"#;

    #[test]
    fn both_versions_read_a_heartbeat_alike() {
        let frame = Version::V1.read(HEARTBEAT_V1).expect("a frame");
        assert_eq!(Version::V2.read(HEARTBEAT_V2), Some(frame.clone()));
        assert_eq!((frame.join_ref, frame.reference), (Value::Null, json!("1")));
    }

    #[test]
    fn a_version_does_not_read_the_other_nor_garbage() {
        assert_eq!(Version::V2.read(HEARTBEAT_V1), None);
        for text in [
            HEARTBEAT_V2,
            "hello",
            "42",
            "",
            "null",
            r#"{"topic":"phoenix"}"#,
            "[1,2]",
        ] {
            assert_eq!(Version::V1.read(text), None, "{text}");
        }
    }

    #[test]
    fn no_vsn_is_the_first_version_and_others_are_unknown() {
        assert_eq!(Version::negotiate(None), Some(Version::V1));
        assert_eq!(Version::negotiate(Some("1.0.0")), Some(Version::V1));
        assert_eq!(Version::negotiate(Some("2.0.0")), Some(Version::V2));
        assert_eq!(Version::negotiate(Some("3.0.0")), None);
        assert_eq!(Version::negotiate(Some("1.0")), None);
    }

    #[test]
    fn a_frame_is_written_as_the_real_server_writes_it() {
        let written = |version: Version| {
            let payload = r#"{"status":"ok","response":{}}"#;
            version.write(
                (&json!("1"), &json!("5")),
                "realtime:\"a\"",
                "phx_reply",
                payload,
            )
        };
        assert_eq!(
            written(Version::V1),
            r#"{"ref":"5","event":"phx_reply","topic":"realtime:\"a\"","payload":{"status":"ok","response":{}}}"#
        );
        assert_eq!(
            written(Version::V2),
            r#"["1","5","realtime:\"a\"","phx_reply",{"status":"ok","response":{}}]"#
        );
    }
}
