//! The protocol against frames that the real server sent.

use super::*;

const NOW: i64 = 1_800_000_000;
const TOPIC: &str = "realtime:visit_distribution_changes";

fn secret() -> Secret {
    Secret::new("a secret of the tests, at least 32 characters long")
}

fn token(seconds: i64) -> String {
    jwt::mint(&secret(), "service_role", NOW + seconds)
}

/// The channels of one socket.
const MAX_CHANNELS: usize = 3;

/// A session, the clock that it is told, and the generation of its next join.
struct TestSocket {
    session: ServerSession,
    now: i64,
    generation: u64,
}

impl TestSocket {
    fn new(version: Version) -> Self {
        let grant = Grant {
            role: "service_role".to_owned(),
            expires_at: Some(NOW + 3_600),
        };
        Self {
            session: ServerSession::new(version, secret(), grant, MAX_CHANNELS),
            now: NOW,
            generation: 0,
        }
    }

    fn receive(&mut self, text: &str) -> Vec<ConnectionStep> {
        self.generation += u64::from(text.contains("phx_join"));
        self.session.receive(text, self.now, self.generation)
    }

    /// What is sent, in order.
    fn sent(&mut self, text: &str) -> Vec<String> {
        texts(self.receive(text))
    }

    fn push(&self, generation: u64, event: PushEvent) -> Option<String> {
        let step = self.session.push(&Push { generation, event })?;
        texts(vec![step]).pop()
    }
}

fn text(message: &Message) -> String {
    message.to_text().expect("a text frame").to_owned()
}

fn texts(steps: Vec<ConnectionStep>) -> Vec<String> {
    steps
        .into_iter()
        .filter_map(|step| match step {
            ConnectionStep::Send(message) => Some(text(&message)),
            ConnectionStep::Authorize(_)
            | ConnectionStep::Listen(_)
            | ConnectionStep::Subscribe(_)
            | ConnectionStep::Unsubscribe(_) => None,
        })
        .collect()
}

fn join_v1(reference: &str, payload: &str) -> String {
    format!(
        r#"{{"topic":"{TOPIC}","event":"phx_join","payload":{payload},"ref":"{reference}","join_ref":"{reference}"}}"#
    )
}

/// The payload of the official client's join, with `more` beside `config`.
fn payload(more: &str) -> String {
    format!(
        r#"{{"config":{{"broadcast":{{"ack":false,"self":false}},"presence":{{"key":"","enabled":false}},"postgres_changes":[{{"event":"*","schema":"public","table":"visit_distribution"}}],"private":false}}{more}}}"#
    )
}

fn binding_id() -> u32 {
    let params = json!({"event": "*", "schema": "public", "table": "visit_distribution"});
    Binding::new(params.as_object().expect("an object").clone()).id
}

#[test]
fn a_heartbeat_is_answered_in_both_versions() {
    assert_eq!(
        TestSocket::new(Version::V1)
            .sent(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"2"}"#),
        [
            r#"{"ref":"2","event":"phx_reply","topic":"phoenix","payload":{"status":"ok","response":{}}}"#
        ]
    );
    assert_eq!(
        TestSocket::new(Version::V2).sent(r#"[null,"2","phoenix","heartbeat",{}]"#),
        [r#"[null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]"#]
    );
}

#[test]
fn a_join_is_replied_to_and_then_its_subscription_asked_for() {
    let mut socket = TestSocket::new(Version::V1);
    let steps = socket.receive(&join_v1("1", &payload("")));
    let id = binding_id();
    let reply = format!(
        r#"{{"ref":"1","event":"phx_reply","topic":"{TOPIC}","payload":{{"status":"ok","response":{{"postgres_changes":[{{"id":{id},"event":"*","schema":"public","table":"visit_distribution"}}]}}}}}}"#
    );
    let [
        ConnectionStep::Listen(_),
        ConnectionStep::Send(sent),
        ConnectionStep::Subscribe(wanted),
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    assert_eq!(text(sent), reply);
    assert_eq!(
        (wanted.generation, wanted.role.as_str()),
        (1, "service_role")
    );
    assert_eq!(wanted.targets[0].table, "visit_distribution");
}

#[test]
fn the_subscription_and_its_events_are_sent_as_the_real_server_sends_them() {
    let mut socket = TestSocket::new(Version::V1);
    socket.receive(&join_v1("1", &payload("")));
    assert_eq!(
        socket.push(1, PushEvent::Subscribed).expect("a frame"),
        format!(
            r#"{{"ref":null,"event":"system","topic":"{TOPIC}","payload":{{"message":"Subscribed to PostgreSQL","status":"ok","extension":"postgres_changes","channel":"visit_distribution_changes"}}}}"#
        )
    );
    let changed = PushEvent::Changed {
        data: r#"{"table":"t"}"#.into(),
        ids: [1, 2].into(),
    };
    assert_eq!(
        socket.push(1, changed.clone()).expect("a frame"),
        format!(
            r#"{{"ref":null,"event":"postgres_changes","topic":"{TOPIC}","payload":{{"data":{{"table":"t"}},"ids":[1,2]}}}}"#
        )
    );
    let mut second = TestSocket::new(Version::V2);
    second.receive(&format!(
        r#"["6","6","{TOPIC}","phx_join",{}]"#,
        payload("")
    ));
    assert_eq!(
        second.push(1, changed).expect("a frame"),
        format!(
            r#"[null,null,"{TOPIC}","postgres_changes",{{"data":{{"table":"t"}},"ids":[1,2]}}]"#
        )
    );
    let system = second
        .push(1, PushEvent::Failed("why".to_owned()))
        .expect("a frame");
    assert!(system.starts_with(&format!(
        r#"["6",null,"{TOPIC}","system",{{"message":"why","status":"error","extension":"postgres_changes""#
    )));
}

#[test]
fn the_same_topic_joined_twice_closes_the_old_join_after_the_new_reply() {
    let mut socket = TestSocket::new(Version::V1);
    socket.receive(&join_v1("1", &payload("")));
    let steps = socket.receive(&join_v1("2", &payload("")));
    let [
        ConnectionStep::Listen(_),
        ConnectionStep::Send(reply),
        ConnectionStep::Send(close),
        ConnectionStep::Unsubscribe(1),
        ConnectionStep::Subscribe(wanted),
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    let reply = text(reply);
    assert!(
        reply.starts_with(r#"{"ref":"2","event":"phx_reply""#),
        "{reply}"
    );
    assert_eq!(
        text(close),
        format!(r#"{{"ref":"1","event":"phx_close","topic":"{TOPIC}","payload":{{}}}}"#)
    );
    assert_eq!(wanted.generation, 2);
    assert_eq!(
        socket.push(1, PushEvent::Subscribed),
        None,
        "events of the old join are dropped"
    );
}

#[test]
fn a_leave_is_replied_to_and_closes_and_a_second_leave_is_only_replied_to() {
    let mut socket = TestSocket::new(Version::V2);
    socket.receive(&format!(
        r#"["1","1","{TOPIC}","phx_join",{}]"#,
        payload("")
    ));
    let steps = socket.receive(&format!(r#"["1","5","{TOPIC}","phx_leave",{{}}]"#));
    assert!(steps.contains(&ConnectionStep::Unsubscribe(1)));
    let sent = texts(steps);
    assert!(
        sent[0].ends_with(r#""phx_reply",{"status":"ok","response":{}}]"#),
        "{sent:?}"
    );
    assert_eq!(sent[1], format!(r#"["1","1","{TOPIC}","phx_close",{{}}]"#));
    assert_eq!(socket.push(1, PushEvent::Subscribed), None);
    assert_eq!(
        socket
            .sent(&format!(r#"["1","6","{TOPIC}","phx_leave",{{}}]"#))
            .len(),
        1
    );
}

#[test]
fn presence_state_comes_only_when_presence_is_enabled() {
    let mut socket = TestSocket::new(Version::V1);
    let enabled = payload("").replace(r#""enabled":false"#, r#""enabled":true"#);
    assert_eq!(
        socket.sent(&join_v1("1", &enabled))[1],
        format!(r#"{{"ref":null,"event":"presence_state","topic":"{TOPIC}","payload":{{}}}}"#)
    );
    assert_eq!(socket.sent(&join_v1("2", &payload(""))).len(), 2);
}

#[test]
fn topics_that_are_not_served_or_not_joined_are_unmatched() {
    let mut socket = TestSocket::new(Version::V1);
    for frame in [
        r#"{"topic":"nosuch:topic","event":"phx_join","payload":{},"ref":"5"}"#,
        r#"{"topic":"realtime:notjoined","event":"broadcast","payload":{"x":1},"ref":"5"}"#,
        r#"{"topic":"phoenix","event":"foo","payload":{},"ref":"5"}"#,
    ] {
        let sent = socket.sent(frame);
        let refusal = r#""payload":{"status":"error","response":{"reason":"unmatched topic"}}}"#;
        assert!(sent[0].ends_with(refusal), "{sent:?}");
    }
}

#[test]
fn a_refused_join_says_why() {
    let mut socket = TestSocket::new(Version::V1);
    let expired = jwt::mint(&secret(), "service_role", NOW - 60);
    let forged = jwt::mint(&Secret::new("another"), "service_role", NOW + 60);
    let with_token = |token: &str| payload(&format!(r#","access_token":"{token}""#));
    for (payload, reason) in [
        (
            with_token(&expired),
            "InvalidJWTToken: Token has expired 60 seconds ago",
        ),
        (
            with_token(&forged),
            "JwtSignatureError: Failed to validate JWT signature",
        ),
        (
            with_token("abc"),
            "MalformedJWT: The token provided is not a valid JWT",
        ),
        (
            r#""x""#.to_owned(),
            r#"UnknownErrorOnChannel: expected params to be a :map, got: `\"x\"`"#,
        ),
        (
            r#"{"config":"x"}"#.to_owned(),
            "UnknownErrorOnChannel: no function clause matching",
        ),
        (
            r#"{"config":{"postgres_changes":["x"]}}"#.to_owned(),
            r#"UnknownErrorOnChannel: expected a map, got:\n\n    \"x\"\n"#,
        ),
    ] {
        let steps = socket.receive(&join_v1("1", &payload));
        let [ConnectionStep::Send(reply)] = steps.as_slice() else {
            panic!("{steps:?}")
        };
        let reply = text(reply);
        assert!(reply.contains(reason), "{reply}");
        assert!(reply.contains(r#""status":"error""#), "{reply}");
    }
    let nameless = r#"{"topic":"realtime:","event":"phx_join","payload":{},"ref":"6"}"#;
    assert!(socket.sent(nameless)[0].contains("TopicNameRequired"));
}

const PRIVATE: &str = r#"{"config":{"broadcast":{"replay":{"since":7,"limit":3}},"private":true}}"#;

#[test]
fn a_private_topic_is_listened_to_by_service_role_without_a_question() {
    let mut socket = TestSocket::new(Version::V1);
    let steps = socket.receive(&join_v1("1", PRIVATE));
    let [ConnectionStep::Listen(listening), ConnectionStep::Send(_)] = steps.as_slice() else {
        panic!("{steps:?}")
    };
    let topic = Topic {
        name: "visit_distribution_changes".to_owned(),
        private: true,
    };
    assert_eq!(listening.topic, topic);
    assert!(listening.replay.is_some());
}

#[test]
fn who_else_joins_a_private_topic_waits_for_what_the_policies_say() {
    let role = "authenticated".to_owned();
    for (permission, reason) in [
        (
            ReadPermission::Denied,
            Some(
                "Unauthorized: You do not have permissions to read from this Channel topic: visit_distribution_changes",
            ),
        ),
        (ReadPermission::Unknown, Some("UnableToConnectToProject")),
        (ReadPermission::Granted, None),
    ] {
        let mut socket = TestSocket::new(Version::V1);
        socket.session.grant.role.clone_from(&role);
        let steps = socket.receive(&join_v1("1", PRIVATE));
        let [ConnectionStep::Authorize(asked)] = steps.as_slice() else {
            panic!("{steps:?}")
        };
        assert_eq!(
            (&*asked.topic, &asked.role),
            ("visit_distribution_changes", &role)
        );
        let steps = socket.session.authorized(asked, permission, NOW, 1);
        match (steps.as_slice(), reason) {
            ([ConnectionStep::Send(reply)], Some(reason)) => {
                let reply = text(reply);
                assert!(reply.contains(reason), "{reply}");
            }
            ([ConnectionStep::Listen(_), ConnectionStep::Send(_)], None) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_clients_broadcast_to_a_private_topic_is_ignored_and_to_a_public_one_refused_by_name() {
    let push = format!(
        r#"{{"topic":"{TOPIC}","event":"broadcast","payload":{{"type":"broadcast","event":"x"}},"ref":"2"}}"#
    );
    let mut socket = TestSocket::new(Version::V1);
    socket.receive(&join_v1("1", PRIVATE));
    assert_eq!(socket.sent(&push), [""; 0]);
    socket.receive(&join_v1("3", &payload("")));
    assert!(socket.sent(&push)[0].contains("NotSupported"));
}

#[test]
fn a_join_without_a_usable_token_has_the_rights_of_the_key() {
    for more in [
        "",
        r#","access_token":null"#,
        r#","access_token":5"#,
        r#","access_token":"sb_secret_a""#,
    ] {
        let mut socket = TestSocket::new(Version::V1);
        let steps = socket.receive(&join_v1("1", &payload(more)));
        assert!(
            matches!(
                steps.as_slice(),
                [
                    ConnectionStep::Listen(_),
                    ConnectionStep::Send(_),
                    ConnectionStep::Subscribe(_)
                ]
            ),
            "{more}"
        );
        socket.now += 3_600;
        let again = socket.sent(&join_v1("2", &payload(more)));
        assert!(
            again[0].contains("InvalidJWTToken: Token has expired 0 seconds ago"),
            "{again:?}"
        );
    }
}

#[test]
fn a_filter_is_refused_at_once_and_the_channel_stays() {
    let mut socket = TestSocket::new(Version::V1);
    let filtered = payload("").replace(
        r#""table":"visit_distribution""#,
        r#""table":"visit_distribution","filter":"is_active=eq.true""#,
    );
    let sent = socket.sent(&join_v1("1", &filtered));
    assert!(sent[0].contains(r#""status":"ok""#));
    assert!(sent[1].contains("NotSupported"), "{}", sent[1]);
    let leave = format!(r#"{{"topic":"{TOPIC}","event":"phx_leave","payload":{{}},"ref":"3"}}"#);
    assert_eq!(socket.sent(&leave).len(), 2);
}

#[test]
fn a_join_of_nothing_subscribes_to_nothing() {
    let mut socket = TestSocket::new(Version::V1);
    for list in ["[]", r#"{"event":"*"}"#] {
        let steps = socket.receive(&join_v1(
            "1",
            &format!(r#"{{"config":{{"postgres_changes":{list}}}}}"#),
        ));
        let Some(ConnectionStep::Send(reply)) = steps.get(1) else {
            panic!("{steps:?}")
        };
        assert!(text(reply).contains(r#""postgres_changes":[]"#));
        assert!(
            !steps
                .iter()
                .any(|step| matches!(step, ConnectionStep::Subscribe(_)))
        );
    }
}

#[test]
fn a_new_token_subscribes_again_without_a_reply_and_the_same_one_does_nothing() {
    let mut socket = TestSocket::new(Version::V1);
    socket.receive(&join_v1("1", &payload("")));
    let frame = |token: &str| {
        format!(
            r#"{{"topic":"{TOPIC}","event":"access_token","payload":{{"access_token":{token}}},"ref":"2"}}"#
        )
    };
    let fresh = format!(r#""{}""#, token(7_200));
    let steps = socket.receive(&frame(&fresh));
    assert!(
        matches!(steps.as_slice(), [ConnectionStep::Subscribe(wanted)] if wanted.generation == 1)
    );
    assert_eq!(socket.session.next_expiry(), Some(NOW + 7_200));
    for ignored in [fresh.as_str(), "null", r#""sb_secret_a""#] {
        assert_eq!(socket.receive(&frame(ignored)), [], "{ignored}");
    }
}

#[test]
fn a_bad_token_closes_the_channel_and_the_socket_goes_on() {
    let forged = jwt::mint(&Secret::new("another"), "service_role", NOW + 60);
    let expired = jwt::mint(&secret(), "service_role", NOW - 5);
    for (token, message) in [
        (forged, ":signature_error"),
        (expired, "Token has expired 5 seconds ago"),
        ("abc".to_owned(), "The token provided is not a valid JWT"),
    ] {
        let mut socket = TestSocket::new(Version::V1);
        socket.receive(&join_v1("1", &payload("")));
        let frame = format!(
            r#"{{"topic":"{TOPIC}","event":"access_token","payload":{{"access_token":"{token}"}},"ref":"2"}}"#
        );
        let sent = socket.sent(&frame);
        assert_eq!(
            sent[0],
            format!(
                r#"{{"ref":null,"event":"system","topic":"{TOPIC}","payload":{{"message":"{message}","status":"error","extension":"system","channel":"visit_distribution_changes"}}}}"#
            )
        );
        assert_eq!(
            sent[1],
            format!(r#"{{"ref":"1","event":"phx_close","topic":"{TOPIC}","payload":{{}}}}"#)
        );
        assert!(socket.sent(&join_v1("3", &payload("")))[0].contains(r#""status":"ok""#));
    }
}

#[test]
fn a_channel_is_closed_in_the_second_that_its_token_expires() {
    let mut socket = TestSocket::new(Version::V1);
    let more = format!(r#","access_token":"{}""#, token(12));
    socket.receive(&join_v1("1", &payload(&more)));
    assert_eq!(socket.session.next_expiry(), Some(NOW + 12));
    assert_eq!(socket.session.expire(NOW + 11), []);
    let steps = socket.session.expire(NOW + 12);
    assert!(steps.contains(&ConnectionStep::Unsubscribe(1)));
    let sent = texts(steps);
    assert!(
        sent[0].contains("Token has expired 0 seconds ago"),
        "{sent:?}"
    );
    assert!(
        sent[1].contains(r#""ref":"1","event":"phx_close""#),
        "{sent:?}"
    );
    assert_eq!(socket.session.next_expiry(), None);
}

#[test]
fn garbage_is_ignored() {
    let mut socket = TestSocket::new(Version::V1);
    for text in [
        "hello",
        "42",
        "",
        "[]",
        r#"{"topic":"phoenix"}"#,
        "{}",
        "\u{0}",
    ] {
        assert_eq!(socket.receive(text), [], "{text}");
    }
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let mut socket = TestSocket::new(Version::V1);
    socket.receive(&join_v1("1", &payload("")));
    let broadcast = format!(
        r#"{{"topic":"{TOPIC}","event":"broadcast","payload":{{}},"ref":"4","join_ref":"1"}}"#
    );
    let sent = socket.sent(&broadcast);
    assert!(
        sent[0].contains("NotSupported") && sent[0].contains("broadcast"),
        "{sent:?}"
    );
}

#[test]
fn one_socket_has_at_most_so_many_channels() {
    let mut socket = TestSocket::new(Version::V1);
    let join = |index: usize| {
        format!(
            r#"{{"topic":"realtime:c{index}","event":"phx_join","payload":{},"ref":"1"}}"#,
            payload("")
        )
    };
    for index in 0..MAX_CHANNELS {
        assert!(socket.sent(&join(index))[0].contains(r#""status":"ok""#));
    }
    let refused = socket.sent(&join(MAX_CHANNELS));
    assert!(
        refused[0].contains("ChannelRateLimitReached: Too many channels"),
        "{refused:?}"
    );
}
