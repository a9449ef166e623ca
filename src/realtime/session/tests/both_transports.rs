//! Two channels on one socket: `postgres_changes`, and broadcasts from the database.

use super::*;
use crate::realtime::broadcast::Broadcast;

const CANARY: &str = r#"[null,null,"realtime:visit_pacer","broadcast",{"type":"broadcast","event":"canary",
    "meta":{"id":"x"},"payload":{"sent_at":1795361805123}}]"#;

fn both() -> Session {
    Session::new(
        vec![FollowedTable::new("public", "visit_distribution")],
        None,
    )
    .with_broadcasts()
}

fn broadcast_join_ok(join: &str) -> String {
    format!(
        r#"["{join}","{join}","{BROADCAST_TOPIC}","phx_reply",{{"status":"ok",
            "response":{{"postgres_changes":[]}}}}]"#
    )
}

fn broadcast_join_refused(join: &str, reason: &str) -> String {
    format!(
        r#"["{join}","{join}","{BROADCAST_TOPIC}","phx_reply",{{"status":"error",
            "response":{{"reason":"{reason}"}}}}]"#
    )
}

/// The binary frame of version 2.0.0.
fn binary_row(version: i64) -> Vec<u8> {
    let meta = r#"{"id":"2d7a1b3c"}"#;
    let payload = format!(r#"{{"distribution_id":"{ROW}","config_version":{version}}}"#);
    let lengths = [BROADCAST_TOPIC.len(), 3, meta.len()].map(|n| u8::try_from(n).expect("short"));
    let header = [4, lengths[0], lengths[1], lengths[2], 1];
    [
        header.as_slice(),
        BROADCAST_TOPIC.as_bytes(),
        b"row",
        meta.as_bytes(),
        payload.as_bytes(),
    ]
    .concat()
}

fn row(version: i64) -> FeedEvent {
    let id = ROW.parse().expect("an id");
    let config_version = Some(version);
    FeedEvent::Broadcast(Broadcast::Row { id, config_version }, false)
}

fn ways_down(events: &[FeedEvent]) -> Vec<Transport> {
    let transport = |event: &FeedEvent| match event {
        FeedEvent::Down(down) => Some(down.transport),
        _ => None,
    };
    events.iter().filter_map(transport).collect()
}

/// Changes under ref 1, broadcasts under ref 2, both live.
fn both_live() -> SessionBench {
    let mut bench = SessionBench::with(both());
    bench.input(SessionInput::Opened);
    bench.receive(&join_ok("1"));
    bench.receive(&broadcast_join_ok("2"));
    bench.receive(&subscribed("1"));
    assert_eq!(
        bench.events(),
        [
            FeedEvent::Live(Transport::Broadcast),
            FeedEvent::Live(Transport::Changes)
        ]
    );
    bench
}

fn binary(bench: &mut SessionBench, bytes: &[u8]) {
    bench.input(SessionInput::Received(
        Frame::decode_binary(bytes).expect("a frame"),
    ));
}

#[test]
fn the_second_join_waits_until_the_first_is_answered_and_is_private() {
    let mut bench = SessionBench::with(both());
    bench.input(SessionInput::Opened);
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["1"]);
    bench.receive(&join_ok("1"));
    let frames = bench.frames();
    let [join] = frames.as_slice() else {
        panic!("one join, not {frames:?}");
    };
    assert_eq!(
        (join.topic.as_str(), join.ref_.as_deref()),
        (BROADCAST_TOPIC, Some("2"))
    );
    assert_eq!(join.payload["config"]["private"], json!(true));
    assert_eq!(join.payload["config"]["postgres_changes"], json!([]));
    assert_eq!(join.payload["config"]["broadcast"].get("replay"), None);
}

#[test]
fn a_row_is_heard_in_binary_and_in_text_and_only_once_the_channel_is_live() {
    let mut bench = SessionBench::with(Session::new(Vec::new(), None).with_broadcasts());
    bench.input(SessionInput::Opened);
    binary(&mut bench, &binary_row(6));
    assert_eq!(bench.events(), [], "an earlier join's");
    bench.receive(&broadcast_join_ok("1"));
    binary(&mut bench, &binary_row(7));
    bench.receive(&format!(
        r#"{{"ref":null,"event":"broadcast","topic":"{BROADCAST_TOPIC}","payload":{{"event":"row",
            "type":"broadcast","payload":{{"distribution_id":"{ROW}","config_version":8}}}}}}"#
    ));
    assert_eq!(
        bench.events(),
        [FeedEvent::Live(Transport::Broadcast), row(7), row(8)]
    );
}

#[test]
fn a_broadcast_channel_that_is_refused_leaves_the_other_live_on_the_same_socket() {
    let mut bench = SessionBench::with(both());
    bench.input(SessionInput::Opened);
    bench.receive(&join_ok("1"));
    bench.receive(&subscribed("1"));
    bench.take();
    let refused = "Unauthorized: You do not have permissions to read from this Channel topic: x";
    let mut join = "2".to_owned();
    for _ in 0..10 {
        bench.receive(&broadcast_join_refused(&join, refused));
        let down = bench.down();
        assert_eq!(
            (down.transport, down.failure.kind),
            (Transport::Broadcast, ErrorKind::Topic)
        );
        assert!(down.retry_in >= REALTIME_SLOW.from);
        bench.receive(&update("visit_distribution"));
        assert!(matches!(bench.events().as_slice(), [FeedEvent::Changed(_)]));
        join = next_join(&mut bench);
    }
}

/// Goes on, with heartbeats answered, until a join is sent; its ref.
fn next_join(bench: &mut SessionBench) -> String {
    const TICKS: usize = 1_000;
    for _ in 0..TICKS {
        bench.tick();
        let frames = bench.frames();
        for ref_ in refs_of(&frames, "heartbeat") {
            bench.receive(&heartbeat_answer(&ref_));
        }
        if let Some(join) = refs_of(&frames, "phx_join").pop() {
            return join;
        }
    }
    panic!("no join in {TICKS} ticks");
}

#[test]
fn a_dead_channel_is_joined_again_beside_the_other_and_has_told_again_what_came_since_the_canary() {
    let mut bench = both_live();
    bench.receive(CANARY);
    bench.take();
    bench.command(FeedCommand::Rejoin(
        Transport::Broadcast,
        "no echo".to_owned(),
    ));
    let actions = bench.take();
    let [
        SessionAction::Send(leave),
        SessionAction::Emit(down),
        SessionAction::Send(join),
    ] = actions.as_slice()
    else {
        panic!("leave, down, join: not {actions:?}");
    };
    assert_eq!(
        (leave.event.as_str(), leave.topic.as_str()),
        ("phx_leave", BROADCAST_TOPIC)
    );
    assert_eq!(
        ways_down(std::slice::from_ref(down)),
        [Transport::Broadcast]
    );
    assert_eq!(
        join.payload["config"]["broadcast"]["replay"],
        json!({ "since": 1_795_361_805_123_i64, "limit": 25 })
    );
    bench.receive(&update("visit_distribution"));
    assert!(matches!(bench.events().as_slice(), [FeedEvent::Changed(_)]));
    bench.receive(&broadcast_join_ok(join.ref_.as_deref().expect("a ref")));
    bench.receive(
        r#"[null,null,"realtime:visit_pacer","broadcast",{"type":"broadcast","event":"canary",
            "meta":{"id":"x","replayed":true},"payload":{"sent_at":1795361805124}}]"#,
    );
    let canary = Broadcast::Canary {
        sent_at: Some(1_795_361_805_124),
    };
    assert_eq!(
        bench.events(),
        [
            FeedEvent::Live(Transport::Broadcast),
            FeedEvent::Broadcast(canary, true)
        ]
    );
}

#[test]
fn a_socket_that_ends_takes_both_ways_down_and_both_are_joined_again() {
    let mut bench = both_live();
    bench.input(SessionInput::Closed("code 1012".to_owned()));
    assert_eq!(
        ways_down(&bench.events()),
        [Transport::Changes, Transport::Broadcast]
    );
    assert_eq!(bench.tick(), "open a socket again");
    bench.input(SessionInput::Opened);
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["3"]);
    bench.receive(&join_ok("3"));
    bench.receive(&subscribed("3"));
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["4"]);
}

#[test]
fn a_channel_that_the_server_closes_does_not_concern_the_other() {
    for (closed, transport) in [("1", Transport::Changes), ("2", Transport::Broadcast)] {
        let mut bench = both_live();
        let topic = if transport == Transport::Changes {
            TOPIC
        } else {
            BROADCAST_TOPIC
        };
        bench.receive(&format!(
            r#"["{closed}","{closed}","{topic}","phx_close",{{}}]"#
        ));
        assert_eq!(ways_down(&bench.events()), [transport]);
        let live: Vec<Transport> = (bench.session.channels.iter())
            .filter(|channel| channel.is_live())
            .map(|channel| channel.transport)
            .collect();
        assert_eq!(
            live,
            Transport::ALL
                .into_iter()
                .filter(|one| *one != transport)
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn broadcasts_are_followed_and_left_by_command_whatever_the_tables() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Broadcasts(true));
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["2"]);
    bench.receive(&broadcast_join_ok("2"));
    assert_eq!(bench.events(), [FeedEvent::Live(Transport::Broadcast)]);
    bench.command(FeedCommand::Broadcasts(true));
    assert_eq!(bench.take(), [], "they are followed");
    bench.command(FeedCommand::Broadcasts(false));
    let actions = bench.take();
    assert!(
        matches!(actions.as_slice(), [SessionAction::Send(leave), SessionAction::Emit(_)] if leave.event == "phx_leave")
    );
}

#[test]
fn over_a_new_socket_that_was_asked_for_both_are_joined_again() {
    let mut bench = both_live();
    bench.command(FeedCommand::Reopen("no echo, again".to_owned()));
    assert_eq!(
        ways_down(&bench.events()),
        [Transport::Changes, Transport::Broadcast]
    );
    bench.input(SessionInput::Opened);
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["3"]);
    bench.receive(&join_ok("3"));
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["4"]);
}
