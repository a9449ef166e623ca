//! Broadcasts that the database sends: a row changed, or a canary.
//!
//! Reads what `deploy/supabase/broadcast.sql` sends: the event `row` with `distribution_id` and `config_version`, the event
//! `canary` with `sent_at`. They do not contain the row itself.

use serde_json::Value;
use uuid::Uuid;

/// A broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// A row changed.
    Row {
        /// Its id.
        id: Uuid,
        /// Its `config_version` after the change; none if it was deleted.
        config_version: Option<i64>,
    },
    /// A canary of any agent: broadcasts arrive.
    Canary {
        /// When the database sent it, in milliseconds of the Unix epoch.
        sent_at: Option<i64>,
    },
}

impl Broadcast {
    /// Reads the payload of a `broadcast` frame: `None` for an event of somebody else, a message for a row that it does not
    /// name.
    pub fn read(payload: &Value) -> Option<Result<Self, String>> {
        let content = payload.get("payload").unwrap_or(&Value::Null);
        match payload.get("event")?.as_str()? {
            "row" => {
                let id = content.get("distribution_id").and_then(Value::as_str);
                let row = id.and_then(|id| id.parse().ok()).map(|id| Self::Row {
                    id,
                    config_version: content.get("config_version").and_then(Value::as_i64),
                });
                Some(row.ok_or_else(|| "broadcast without a distribution_id".to_owned()))
            }
            "canary" => Some(Ok(Self::Canary {
                sent_at: content.get("sent_at").and_then(Value::as_i64),
            })),
            _ => None,
        }
    }

    /// Whether the server replays it from its store after a join. Such a broadcast does not prove that new ones arrive.
    pub fn is_replayed(payload: &Value) -> bool {
        payload
            .get("meta")
            .and_then(|meta| meta.get("replayed"))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_and_a_canary_are_read_and_other_events_are_ignored() {
        let row = json!({ "event": "row", "type": "broadcast", "payload": {
            "distribution_id": "11111111-1111-1111-1111-111111111111", "config_version": i64::MAX, "id": "x" } });
        assert_eq!(
            Broadcast::read(&row),
            Some(Ok(Broadcast::Row {
                id: Uuid::from_u128(0x1111_1111_1111_1111_1111_1111_1111_1111),
                config_version: Some(i64::MAX)
            }))
        );
        let canary = json!({ "event": "canary", "payload": { "sent_at": 5 } });
        assert_eq!(
            Broadcast::read(&canary),
            Some(Ok(Broadcast::Canary { sent_at: Some(5) }))
        );
        assert_eq!(Broadcast::read(&json!({ "event": "else" })), None);
        assert_eq!(Broadcast::read(&json!([])), None);
    }

    #[test]
    fn a_row_without_an_id_is_an_error() {
        for payload in [json!(null), json!({}), json!({ "distribution_id": "7" })] {
            let row = json!({ "event": "row", "payload": payload });
            assert!(matches!(Broadcast::read(&row), Some(Err(_))), "{row}");
        }
    }
}
