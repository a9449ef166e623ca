//! A message of logical decoding, as the demo's Realtime server reads it: whole or refused, and no larger than its bytes.

use visit_pacer::demo::pgoutput::{Message, OldTuple, Value, decode};

/// As one message.
pub fn run(data: &[u8]) {
    let Ok(message) = decode(data) else { return };
    let (_, shorter) = data.split_last().expect("no message is empty");
    assert!(decode(shorter).is_err(), "a message that is cut is refused");
    let told = match message {
        Message::Begin { .. } | Message::Commit { .. } => 0,
        Message::Origin { name, .. } => name.len(),
        Message::Type {
            namespace, name, ..
        } => namespace.len() + name.len(),
        Message::Relation(relation) => relation.columns.iter().map(|c| 5 + c.name.len()).sum(),
        Message::Insert { new, .. } => size(&new),
        Message::Update { old, new, .. } => old.as_ref().map_or(0, old_size) + size(&new),
        Message::Delete { old, .. } => old_size(&old),
        Message::Truncate { relations } => 4 * relations.len(),
    };
    assert!(told < data.len(), "nothing is told that was not sent");
}

fn old_size(old: &OldTuple<'_>) -> usize {
    match old {
        OldTuple::Key(tuple) | OldTuple::Full(tuple) => size(tuple),
    }
}

fn size(tuple: &[Value<'_>]) -> usize {
    tuple
        .iter()
        .map(|value| match value {
            Value::Null | Value::UnchangedToast => 1,
            Value::Text(text) => 5 + text.len(),
        })
        .sum()
}
