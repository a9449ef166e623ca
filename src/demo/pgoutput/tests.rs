//! The decoder against bytes that `PostgreSQL` 15 sent, and against bytes that nobody sent.

use proptest::{collection::vec, prelude::*};

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0);
    let digits: Vec<char> = hex.chars().collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex"))
        .collect()
}

/// Every kind of message that version 1 has, as `PostgreSQL` 15 sent it for the tables
/// `t(id bigint primary key, name text, big text, m mood)` and, with `replica identity full`,
/// `f(id int primary key, v numeric)`.
const RECORDED: [&str; 15] = [
    "420000000001971898000303dfef20855f000002e5",
    "59000040067075626c6963006d6f6f6400",
    "52000040097075626c69630074006400040169640000000014ffffffff006e616d650000000019ffffffff00626967\
     0000000019ffffffff006d0000004006ffffffff",
    "49000040094e00047400000001317400000002c3a96e74000000026f6b",
    "55000040094e00047400000001317400000001626e74000000026f6b",
    "55000040094b00047400000001316e6e6e4e00047400000001327400000001626e74000000026f6b",
    "44000040094b00047400000001326e6e6e",
    "4300000000000197189800000000019718c8000303dfef20855f",
    "52000040107075626c6963006600660002\
     0169640000000017ffffffff017600000006a4ffffffff",
    "49000040104e00027400000001377400000004312e3530",
    "55000040104f00027400000001377400000004312e35304e00027400000001377400000004302e3130",
    "44000040104f00027400000001377400000004302e3130",
    "5400000002000000401000004009",
    "55000040094e0004740000000133740000000179756e",
    "4f0000000001971898656c7365776865726500",
];

fn recorded() -> Vec<Vec<u8>> {
    RECORDED.iter().map(|hex| bytes(hex)).collect()
}

fn text(text: &str) -> TupleValue<'_> {
    TupleValue::Text(text)
}

fn row<'a>(
    relation: u32,
    operation: RowOperation,
    old: Option<OldTuple<'a>>,
    new: Option<Tuple<'a>>,
) -> WalMessage<'a> {
    WalMessage::Row(WalRow {
        relation,
        operation,
        old,
        new,
    })
}

#[test]
fn a_transaction_begins_with_its_commit_time() {
    let committed_at = DateTime::parse_from_rfc3339("2026-11-22T17:54:14.608223Z")
        .expect("a time")
        .to_utc();
    assert_eq!(
        decode(&recorded()[0]),
        Ok(WalMessage::Begin { committed_at })
    );
}

#[test]
fn a_relation_names_its_columns_and_those_of_its_identity() {
    let recorded = recorded();
    let Ok(WalMessage::Relation(table)) = decode(&recorded[2]) else {
        panic!("a relation")
    };
    assert_eq!(
        (table.oid, table.namespace.as_str(), table.name.as_str()),
        (16393, "public", "t")
    );
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|c| (c.name.as_str(), c.type_oid, c.in_identity))
        .collect();
    let expected = [
        ("id", 20, true),
        ("name", 25, false),
        ("big", 25, false),
        ("m", 16390, false),
    ];
    assert_eq!(columns, expected);
    let Ok(WalMessage::Relation(full)) = decode(&recorded[8]) else {
        panic!("a relation")
    };
    assert!(full.columns.iter().all(|column| column.in_identity));
}

#[test]
fn an_insert_holds_the_row() {
    let new = vec![text("1"), text("é"), TupleValue::Null, text("ok")];
    assert_eq!(
        decode(&recorded()[3]),
        Ok(row(16393, RowOperation::Insert, None, Some(new)))
    );
}

#[test]
fn an_update_has_the_old_key_only_when_it_changed() {
    let recorded = recorded();
    let new = vec![text("1"), text("b"), TupleValue::Null, text("ok")];
    assert_eq!(
        decode(&recorded[4]),
        Ok(row(16393, RowOperation::Update, None, Some(new)))
    );
    let null = TupleValue::Null;
    let old = OldTuple::Key(vec![text("1"), null, null, null]);
    let new = vec![text("2"), text("b"), null, text("ok")];
    assert_eq!(
        decode(&recorded[5]),
        Ok(row(16393, RowOperation::Update, Some(old), Some(new)))
    );
}

#[test]
fn full_identity_has_the_whole_old_row() {
    let recorded = recorded();
    let old = OldTuple::Full(vec![text("7"), text("1.50")]);
    let new = vec![text("7"), text("0.10")];
    assert_eq!(
        decode(&recorded[10]),
        Ok(row(16400, RowOperation::Update, Some(old), Some(new)))
    );
    let old = OldTuple::Full(vec![text("7"), text("0.10")]);
    assert_eq!(
        decode(&recorded[11]),
        Ok(row(16400, RowOperation::Delete, Some(old), None))
    );
}

#[test]
fn a_delete_has_the_key() {
    let null = TupleValue::Null;
    let old = OldTuple::Key(vec![text("2"), null, null, null]);
    assert_eq!(
        decode(&recorded()[6]),
        Ok(row(16393, RowOperation::Delete, Some(old), None))
    );
}

#[test]
fn an_out_of_line_value_that_was_not_touched_differs_from_null() {
    let new = vec![
        text("3"),
        text("y"),
        TupleValue::UnchangedToast,
        TupleValue::Null,
    ];
    assert_eq!(
        decode(&recorded()[13]),
        Ok(row(16393, RowOperation::Update, None, Some(new)))
    );
}

#[test]
fn commits_types_origins_and_truncations_are_ignored() {
    let recorded = recorded();
    for index in [1, 7, 12, 14] {
        assert_eq!(decode(&recorded[index]), Ok(WalMessage::Ignored));
    }
}

#[test]
fn a_decoded_message_is_refused_when_a_byte_is_missing_or_left_over() {
    for message in recorded() {
        if decode(&message) == Ok(WalMessage::Ignored) {
            continue;
        }
        for length in 0..message.len() {
            let cut = &message[..length];
            assert!(
                matches!(decode(cut), Err(DecodeError::Truncated(_))),
                "{cut:x?}"
            );
        }
        let longer = [message.as_slice(), &[0]].concat();
        assert_eq!(decode(&longer), Err(DecodeError::TrailingBytes(1)));
    }
}

#[test]
fn counts_beyond_the_bytes_are_refused_without_being_believed() {
    let insert = bytes("49000040094effff74ffffffff");
    assert_eq!(decode(&insert), Err(DecodeError::Truncated("value")));
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let insert = bytes("49000040094e00017400000001ff");
    assert_eq!(decode(&insert), Err(DecodeError::NotUtf8("value")));
}

#[test]
fn a_message_of_a_later_protocol_version_is_named() {
    let stream_start = bytes("53000002e501");
    let unknown = DecodeError::UnknownTag {
        what: "message",
        tag: b'S',
    };
    assert_eq!(decode(&stream_start), Err(unknown));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn a_message_with_changed_bytes_never_panics(
        which in 0..RECORDED.len(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut message = recorded()[which].clone();
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        let _ = decode(&message);
    }
}
