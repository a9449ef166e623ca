//! The record of an event: a sound change names its row, and a damaged one says why.

use serde_json::{Value, json};
use visit_pacer::realtime::change::Change;

/// As the payload of a frame, and as what the payload says of the row.
pub fn run(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    for payload in [json!({ "data": value }), value] {
        let Some(change) = Change::read(&payload) else {
            continue;
        };
        assert!(change.id.is_some() || change.damage.is_some());
        if let Some(version) = change.config_version {
            assert_eq!(payload["data"]["record"]["config_version"], json!(version));
        }
    }
}
