use proptest::prelude::*;

use super::*;

/// A binary broadcast as a server sent it.
const RECORDED_BROADCAST: &[u8] = b"\x04\x0d\x03\x2d\x01realtime:vd:1ev1\
    {\"id\":\"7921d494-deb6-47a4-98f1-c3f4135757eb\"}\
    {\"a\": 1, \"id\": \"7921d494-deb6-47a4-98f1-c3f4135757eb\"}";

fn decode(text: &str) -> Frame {
    Frame::decode_text(text).expect("test text is a frame")
}

#[test]
fn a_frame_of_version_2_is_read_part_by_part() {
    let frame = decode(r#"["1","2","realtime:a","phx_reply",{"status":"ok","response":{}}]"#);
    assert_eq!(frame.join_ref.as_deref(), Some("1"));
    assert_eq!(frame.ref_.as_deref(), Some("2"));
    assert_eq!(frame.topic, "realtime:a");
    assert_eq!(frame.event, "phx_reply");
    assert_eq!(frame.payload, json!({ "status": "ok", "response": {} }));
}

#[test]
fn a_frame_of_version_1_is_read_by_its_names_and_without_a_join_ref() {
    let text = r#"{"ref":null,"event":"system","topic":"realtime:a","payload":{"status":"ok"}}"#;
    let frame = decode(text);
    assert_eq!((frame.join_ref, frame.ref_), (None, None));
    assert_eq!(
        (frame.topic.as_str(), frame.event.as_str()),
        ("realtime:a", "system")
    );
    assert_eq!(frame.payload, json!({ "status": "ok" }));
}

#[test]
fn numbers_keep_each_digit_and_their_scale() {
    let text = r#"[null,null,"t","e",{"a":12345678901234567890.123456789,"b":1234.50}]"#;
    let frame = decode(text);
    assert!(
        frame
            .encode()
            .contains(r#""a":12345678901234567890.123456789,"b":1234.50"#)
    );
}

#[test]
fn an_event_that_nobody_knows_is_a_frame_like_any_other() {
    assert_eq!(
        decode(r#"[null,null,"t","event_of_2031",[1,2]]"#).event,
        "event_of_2031"
    );
}

#[test]
fn what_is_no_frame_is_refused_and_its_content_not_repeated() {
    for text in [
        "",
        "hello secret",
        "42",
        "null",
        "\"secret\"",
        "[]",
        r#"["1","2","t","e"]"#,
        r#"["1","2","t","e",{},"secret"]"#,
        r#"[1,"2","t","e","secret"]"#,
        r#"["1","2",null,"e","secret"]"#,
        r#"{"topic":"t","payload":"secret"}"#,
        r#"{"topic":["secret"],"event":"e"}"#,
        r#"[null,null,"t","e",{"secret":"#,
    ] {
        let error = Frame::decode_text(text).expect_err(text);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let deep = format!(r#"[null,null,"t","e",{}"#, "[".repeat(1_000_000));
    assert!(Frame::decode_text(&deep).is_err());
}

#[test]
fn a_binary_broadcast_is_the_frame_that_version_1_sends_in_its_place() {
    let of_version_1 = decode(
        r#"{"ref":null,"event":"broadcast","topic":"realtime:vd:1","payload":{"event":"ev1",
            "meta":{"id":"7921d494-deb6-47a4-98f1-c3f4135757eb"},
            "payload":{"a": 1, "id": "7921d494-deb6-47a4-98f1-c3f4135757eb"},
            "type":"broadcast"}}"#,
    );
    let binary = Frame::decode_binary(RECORDED_BROADCAST).expect("a recorded broadcast");
    assert_eq!(binary, of_version_1);
    assert_eq!(binary.payload, of_version_1.payload);
}

#[test]
fn a_binary_broadcast_that_is_cut_short_anywhere_is_refused() {
    for length in 0..RECORDED_BROADCAST.len() {
        let cut = RECORDED_BROADCAST.get(..length).expect("a shorter length");
        assert!(Frame::decode_binary(cut).is_err(), "{length}");
    }
}

#[test]
fn binary_messages_of_other_kinds_and_encodings_are_told_apart() {
    assert!(matches!(
        Frame::decode_binary(b"\x01abc"),
        Err(FrameError::Kind(1))
    ));
    assert!(matches!(
        Frame::decode_binary(b"\x04\x01\x01\x00\x00te\xff\xfe"),
        Err(FrameError::Encoding(0))
    ));
}

#[test]
fn debug_output_shows_no_payload() {
    let frame = decode(r#"["1","1","t","phx_join",{"access_token":"hush"}]"#);
    let shown = format!("{frame:?}");
    assert!(
        shown.contains("phx_join") && !shown.contains("hush"),
        "{shown}"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    (
        any::<Option<String>>(),
        any::<Option<String>>(),
        any::<String>(),
        any::<String>(),
        any_json(),
    )
        .prop_map(|(join_ref, ref_, topic, event, payload)| Frame {
            join_ref,
            ref_,
            topic,
            event,
            payload,
        })
}

/// Text that comes close to a frame, which plain noise never does.
fn near_frame() -> impl Strategy<Value = String> {
    (
        any_frame().prop_map(|frame| frame.encode()),
        any::<prop::sample::Index>(),
        any::<char>(),
    )
        .prop_map(|(text, at, replacement)| {
            let at = at.index(text.chars().count());
            text.chars()
                .enumerate()
                .map(|(i, c)| if i == at { replacement } else { c })
                .collect()
        })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_it_was(frame in any_frame()) {
        prop_assert_eq!(&decode(&frame.encode()), &frame);
        prop_assert_eq!(decode(&frame.encode()).payload, frame.payload);
    }

    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), near_frame()]) {
        if let Ok(frame) = Frame::decode_text(&text) {
            prop_assert_eq!(decode(&frame.encode()), frame);
        }
    }

    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        is_broadcast in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let (true, Some(kind)) = (is_broadcast, bytes.first_mut()) {
            *kind = BROADCAST_KIND;
        }
        if let Ok(frame) = Frame::decode_binary(&bytes) {
            prop_assert_eq!(frame.event, "broadcast");
        }
    }
}
