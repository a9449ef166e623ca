//! A message of logical decoding, as the demo's Realtime server reads it: whole or refused, and no larger than its bytes.

use visit_pacer::demo::pgoutput::{OldTuple, TupleValue, WalMessage, decode};

/// As one message.
pub fn run(data: &[u8]) {
    let Ok(message) = decode(data) else { return };
    let (_, shorter) = data.split_last().expect("no message is empty");
    let decoded = match message {
        WalMessage::Ignored => return,
        WalMessage::Begin { .. } => 0,
        WalMessage::Relation(relation) => relation.columns.iter().map(|c| 5 + c.name.len()).sum(),
        WalMessage::Row(row) => {
            let old = row.old.as_ref().map(|old| match old {
                OldTuple::Key(tuple) | OldTuple::Full(tuple) => size(tuple),
            });
            old.unwrap_or(0) + row.new.as_deref().map_or(0, size)
        }
    };
    assert!(decode(shorter).is_err(), "a message that is cut is refused");
    assert!(decoded < data.len(), "nothing is decoded that was not sent");
}

fn size(tuple: &[TupleValue<'_>]) -> usize {
    tuple
        .iter()
        .map(|value| match value {
            TupleValue::Null | TupleValue::UnchangedToast => 1,
            TupleValue::Text(text) => 5 + text.len(),
        })
        .sum()
}
