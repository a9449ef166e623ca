use super::*;
use crate::domain::error_policy::REALTIME_SLOW;

mod any_order;
mod back_off;
mod both_transports;

const ROW: &str = "11111111-1111-1111-1111-111111111111";
const MIDDLE: u32 = u32::MAX / 2;

/// A session on a bench: its clock moves when told, its actions pile up until taken.
struct SessionBench {
    session: Session,
    now: Instant,
    draw: u32,
}

impl SessionBench {
    fn new() -> Self {
        let bindings = vec![FollowedTable::new("public", "visit_distribution")];
        Self::with(Session::new(bindings, None))
    }

    fn with(session: Session) -> Self {
        Self {
            session,
            now: Instant::now(),
            draw: MIDDLE,
        }
    }

    /// Open, and the first join sent.
    fn opened() -> Self {
        let mut bench = Self::new();
        bench.input(SessionInput::Opened);
        bench
    }

    /// Joined under ref 1, and not yet live.
    fn joined() -> Self {
        let mut bench = Self::opened();
        bench.receive(&join_ok("1"));
        bench
    }

    fn live() -> Self {
        let mut bench = Self::joined();
        bench.receive(&subscribed("1"));
        bench.take();
        bench
    }

    fn input(&mut self, input: SessionInput) {
        self.session.handle(input, self.now, self.draw);
    }

    fn receive(&mut self, text: &str) {
        self.input(SessionInput::Received(
            Frame::decode_text(text).expect("test text is a frame"),
        ));
    }

    fn command(&mut self, command: FeedCommand) {
        self.input(SessionInput::Command(command));
    }

    fn take(&mut self) -> Vec<SessionAction> {
        std::iter::from_fn(|| self.session.poll_action()).collect()
    }

    fn frames(&mut self) -> Vec<Frame> {
        self.take().into_iter().filter_map(sent).collect()
    }

    fn events(&mut self) -> Vec<FeedEvent> {
        self.take().into_iter().filter_map(told).collect()
    }

    fn down(&mut self) -> Down {
        match self.events().as_slice() {
            [FeedEvent::Down(down)] => down.clone(),
            other => panic!("expected one Down, found {other:?}"),
        }
    }

    /// Moves to the next deadline, ticks, and returns why it was due.
    fn tick(&mut self) -> &'static str {
        let (at, why) = self.session.next_deadline().expect("a deadline");
        self.now = self.now.max(at);
        self.input(SessionInput::Tick);
        why
    }

    fn due_in(&self) -> Duration {
        let (at, _) = self.session.next_deadline().expect("a deadline");
        at.saturating_duration_since(self.now)
    }
}

fn sent(action: SessionAction) -> Option<Frame> {
    if let SessionAction::Send(frame) = action {
        Some(frame)
    } else {
        None
    }
}

fn told(action: SessionAction) -> Option<FeedEvent> {
    if let SessionAction::Emit(event) = action {
        Some(event)
    } else {
        None
    }
}

fn join_ok(join: &str) -> String {
    format!(
        r#"["{join}","{join}","{TOPIC}","phx_reply",{{"status":"ok","response":{{"postgres_changes":
            [{{"id":43093599,"event":"*","schema":"public","table":"visit_distribution"}}]}}}}]"#
    )
}

fn join_refused(join: &str, reason: &str) -> String {
    format!(
        r#"["{join}","{join}","{TOPIC}","phx_reply",{{"status":"error",
            "response":{{"reason":"{reason}"}}}}]"#
    )
}

fn system(join: &str, status: &str, extension: &str, message: &str) -> String {
    format!(
        r#"["{join}",null,"{TOPIC}","system",{{"message":"{message}","status":"{status}",
            "extension":"{extension}","channel":"visit-pacer"}}]"#
    )
}

fn subscribed(join: &str) -> String {
    system(join, "ok", "postgres_changes", "Subscribed to PostgreSQL")
}

fn closed(join: &str) -> String {
    format!(r#"["{join}","{join}","{TOPIC}","phx_close",{{}}]"#)
}

fn update(table: &str) -> String {
    format!(
        r#"[null,null,"{TOPIC}","postgres_changes",{{"data":{{"table":"{table}","type":"UPDATE",
            "record":{{"id":"{ROW}","config_version":17}},"errors":null,"schema":"public",
            "commit_timestamp":"2026-11-22T14:59:32.975Z","old_record":{{"id":"{ROW}"}}}},
            "ids":[43093599]}}]"#
    )
}

fn heartbeat_answer(ref_: &str) -> String {
    format!(r#"[null,"{ref_}","phoenix","phx_reply",{{"status":"ok","response":{{}}}}]"#)
}

fn refs_of(frames: &[Frame], event: &str) -> Vec<String> {
    let of_event = frames.iter().filter(|frame| frame.event == event);
    of_event.filter_map(|frame| frame.ref_.clone()).collect()
}

// Joining.

#[test]
fn nothing_is_sent_before_the_socket_is_open() {
    let mut bench = SessionBench::new();
    assert_eq!(bench.take(), [SessionAction::Dial]);
    assert_eq!(bench.session.next_deadline(), None);
}

#[test]
fn an_open_socket_is_joined_as_the_official_client_joins_it() {
    let tables = vec![
        FollowedTable::new("public", "visit_distribution"),
        FollowedTable::new("public", "canary"),
    ];
    let mut bench = SessionBench::with(Session::new(tables, Some(Secret::new("a.b.c"))));
    bench.input(SessionInput::Opened);
    let frames = bench.frames();
    let expected: Value = serde_json::from_str(
        r#"["1","1","realtime:visit-pacer","phx_join",{"config":{
            "broadcast":{"ack":false,"self":false},"presence":{"key":"","enabled":false},
            "postgres_changes":[{"event":"*","schema":"public","table":"visit_distribution"},
                                {"event":"*","schema":"public","table":"canary"}],
            "private":false},"access_token":"a.b.c"}]"#,
    )
    .expect("test text is JSON");
    let sent: Vec<Value> = frames
        .iter()
        .map(|frame| serde_json::from_str(&frame.encode()).expect("a frame is JSON"))
        .collect();
    assert_eq!(sent, [expected]);
}

#[test]
fn a_renewed_token_is_pushed_to_the_joined_channel_and_goes_with_every_later_join() {
    let tables = vec![FollowedTable::new("public", "visit_distribution")];
    let mut bench = SessionBench::with(Session::new(tables, Some(Secret::new("a.b.c"))));
    bench.session.renew(Secret::new("d.e.f"));
    bench.input(SessionInput::Opened);
    bench.session.renew(Secret::new("g.h.i"));
    let sent: Vec<Value> = bench
        .frames()
        .iter()
        .map(|frame| serde_json::from_str(&frame.encode()).expect("a frame is JSON"))
        .collect();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0][4]["access_token"], "d.e.f");
    let push: Value = serde_json::from_str(
        r#"["1","2","realtime:visit-pacer","access_token",{"access_token":"g.h.i"}]"#,
    )
    .expect("test text is JSON");
    assert_eq!(sent[1], push);
}

#[test]
fn a_key_that_is_not_a_token_is_not_sent_with_the_join() {
    let frames = SessionBench::opened().frames();
    assert_eq!(
        frames
            .first()
            .map(|join| join.payload.get("access_token").is_some()),
        Some(false)
    );
}

#[test]
fn a_join_that_was_answered_is_not_live() {
    let mut bench = SessionBench::joined();
    assert_eq!(bench.events(), []);
}

#[test]
fn the_system_message_makes_it_live() {
    let mut bench = SessionBench::joined();
    bench.receive(&subscribed("1"));
    assert_eq!(bench.events(), [FeedEvent::Live(Transport::Changes)]);
}

#[test]
fn a_second_system_message_in_mid_life_asks_for_another_full_sync() {
    let mut bench = SessionBench::live();
    bench.receive(&subscribed("1"));
    assert_eq!(bench.events(), [FeedEvent::Live(Transport::Changes)]);
}

#[test]
fn a_system_message_of_another_extension_does_not_make_it_live() {
    let mut bench = SessionBench::joined();
    bench.receive(&system(
        "1",
        "ok",
        "system",
        "Replication connection established",
    ));
    assert_eq!(bench.events(), []);
}

#[test]
fn an_unanswered_join_is_left_and_made_again_under_a_new_ref() {
    let mut bench = SessionBench::opened();
    bench.take();
    assert_eq!(bench.tick(), "heartbeat");
    assert_eq!(refs_of(&bench.frames(), "heartbeat"), ["2"]);
    bench.receive(&heartbeat_answer("2"));
    assert_eq!(bench.tick(), "join timeout");
    let leave = bench.frames();
    assert_eq!(refs_of(&leave, "phx_leave"), ["3"]);
    assert_eq!(
        leave.first().and_then(|frame| frame.join_ref.as_deref()),
        Some("1")
    );
    assert_eq!(bench.tick(), "join again");
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["4"]);
}

#[test]
fn an_unconfirmed_subscription_is_left_and_joined_again() {
    let mut bench = SessionBench::joined();
    bench.take();
    bench.tick();
    bench.receive(&heartbeat_answer("2"));
    bench.take();
    assert_eq!(bench.tick(), "subscription timeout");
    assert_eq!(refs_of(&bench.frames(), "phx_leave"), ["3"]);
}

#[test]
fn a_refused_join_is_told_and_made_again_after_a_back_off() {
    let mut bench = SessionBench::opened();
    bench.take();
    bench.receive(&join_refused("1", "UnableToConnectToProject: try again"));
    let down = bench.down();
    assert_eq!(down.failure.kind, ErrorKind::Channel);
    assert!(
        down.failure
            .message
            .ends_with("UnableToConnectToProject: try again"),
        "{}",
        down.failure.message
    );
    assert_eq!(bench.due_in(), down.retry_in);
    bench.tick();
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["2"]);
}

#[test]
fn an_answer_that_lacks_a_table_is_no_subscription() {
    let mut bench = SessionBench::opened();
    bench.take();
    bench.receive(&join_ok("1").replace("visit_distribution", "another"));
    bench.receive(&subscribed("1"));
    let events = bench.events();
    assert!(
        matches!(events.as_slice(), [FeedEvent::Down(_)]),
        "{events:?}"
    );
}

#[test]
fn the_next_join_follows_the_tables_that_were_set_last() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Bindings(vec![FollowedTable::new(
        "public", "other",
    )]));
    assert_eq!(bench.take(), []);
    bench.command(FeedCommand::Rejoin(
        Transport::Changes,
        "the canary is published now".to_owned(),
    ));
    let frames = bench.frames();
    let join = frames
        .iter()
        .find(|frame| frame.event == "phx_join")
        .expect("a join");
    let table = join.payload.pointer("/config/postgres_changes/0/table");
    assert_eq!(table, Some(&Value::from("other")));
}

// Changes.

#[test]
fn a_change_is_told_by_id_and_version() {
    let mut bench = SessionBench::live();
    bench.receive(&update("visit_distribution"));
    let change = Change {
        table: FollowedTable::new("public", "visit_distribution"),
        id: ROW.parse().ok(),
        config_version: Some(17),
        damage: None,
    };
    assert_eq!(bench.events(), [FeedEvent::Changed(change)]);
}

#[test]
fn a_change_of_a_table_whose_name_only_matches_as_a_pattern_is_left_out() {
    let mut bench = SessionBench::live();
    bench.receive(&update("visitXdistribution"));
    assert_eq!(bench.events(), []);
}

#[test]
fn a_change_that_does_not_name_its_table_asks_for_a_full_sync() {
    let mut bench = SessionBench::live();
    bench.receive(&format!(
        r#"[null,null,"{TOPIC}","postgres_changes",{{"data":7}}]"#
    ));
    let events = bench.events();
    assert!(
        matches!(events.as_slice(), [FeedEvent::Lost(_)]),
        "{events:?}"
    );
}

#[test]
fn a_change_that_comes_before_the_answer_to_the_join_is_of_an_earlier_join() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Rejoin(
        Transport::Changes,
        "no echo".to_owned(),
    ));
    bench.take();
    bench.receive(&update("visit_distribution"));
    assert_eq!(bench.events(), []);
}

#[test]
fn unknown_events_topics_and_noise_change_nothing() {
    let mut bench = SessionBench::live();
    bench.receive(&format!(r#"["1",null,"{TOPIC}","presence_state",{{}}]"#));
    bench.receive(&format!(r#"["1",null,"{TOPIC}","event_of_2031",[null]]"#));
    bench.receive(&format!(
        r#"["1",null,"{TOPIC}","system","of another shape"]"#
    ));
    bench.receive(r#"["1","1","realtime:other","phx_close",{}]"#);
    bench.receive(r#"[null,"9","phoenix","phx_reply",{"status":"ok"}]"#);
    bench.input(SessionInput::Activity);
    assert_eq!(bench.take(), []);
    bench.receive(&update("visit_distribution"));
    assert_eq!(bench.events().len(), 1);
}

// Ends of the channel.

#[test]
fn a_close_of_the_channel_is_followed_by_a_join_on_the_same_socket() {
    let mut bench = SessionBench::live();
    bench.receive(&closed("1"));
    assert_eq!(bench.down().failure.kind, ErrorKind::Channel);
    assert_eq!(bench.tick(), "join again");
    let actions = bench.take();
    assert!(matches!(actions.as_slice(), [SessionAction::Send(join)] if join.event == "phx_join"));
}

#[test]
fn an_error_of_the_channel_is_followed_by_a_join() {
    let mut bench = SessionBench::live();
    bench.receive(&format!(r#"["1","1","{TOPIC}","phx_error",{{}}]"#));
    assert_eq!(bench.down().failure.kind, ErrorKind::Channel);
    assert_eq!(bench.tick(), "join again");
}

#[test]
fn a_system_error_is_followed_by_leaving_and_joining_and_the_close_after_it_is_old_news() {
    let mut bench = SessionBench::live();
    bench.receive(&system(
        "1",
        "error",
        "postgres_changes",
        "Query was cancelled",
    ));
    let actions = bench.take();
    assert!(matches!(
        actions.as_slice(),
        [SessionAction::Send(leave), SessionAction::Emit(FeedEvent::Down(_))] if leave.event == "phx_leave"
    ));
    bench.receive(&closed("1"));
    assert_eq!(bench.take(), []);
    assert_eq!(bench.tick(), "join again");
}

#[test]
fn a_table_that_is_not_published_is_told_with_what_to_do_and_tried_again_slowly() {
    let mut bench = SessionBench::live();
    let text = "Unable to subscribe to changes with given parameters. Please check Realtime is \
                enabled for the given connect parameters: [event: *, schema: public, table: \
                visit_distribution, filters: [], select: nil]";
    bench.receive(&system("1", "error", "postgres_changes", text));
    let down = bench.down();
    assert_eq!(down.failure.kind, ErrorKind::Table);
    assert!(down.retry_in >= REALTIME_SLOW.from, "{down:?}");
    assert!(down.to_string().contains("publication"), "{down}");
}

#[test]
fn a_late_close_of_an_earlier_join_does_not_touch_the_present_one() {
    for late in [
        closed("1"),
        format!(r#"["1","1","{TOPIC}","phx_error",{{}}]"#),
        system("1", "error", "system", "Token has expired 0 seconds ago"),
        subscribed("1"),
        join_refused("1", "too late"),
        format!(r#"{{"ref":"1","event":"phx_close","topic":"{TOPIC}","payload":{{}}}}"#),
    ] {
        let mut bench = SessionBench::live();
        bench.command(FeedCommand::Rejoin(
            Transport::Changes,
            "no echo".to_owned(),
        ));
        assert_eq!(refs_of(&bench.frames(), "phx_join"), ["3"]);
        bench.receive(&late);
        assert_eq!(bench.take(), [], "{late}");
        bench.receive(&join_ok("3"));
        bench.receive(&subscribed("3"));
        assert_eq!(
            bench.events(),
            [FeedEvent::Live(Transport::Changes)],
            "{late}"
        );
    }
}

#[test]
fn a_token_that_expires_in_mid_life_calls_for_a_new_socket() {
    let mut bench = SessionBench::live();
    bench.receive(&system(
        "1",
        "error",
        "system",
        "Token has expired 0 seconds ago",
    ));
    let actions = bench.take();
    assert!(actions.contains(&SessionAction::Abandon), "{actions:?}");
    assert_eq!(bench.tick(), "open a socket again");
    assert_eq!(bench.take(), [SessionAction::Dial]);
}

#[test]
fn a_join_that_keeps_failing_is_tried_over_a_new_socket() {
    let mut bench = SessionBench::opened();
    for failure in 1..=JOINS_PER_SOCKET {
        bench.take();
        bench.receive(&join_refused(&failure.to_string(), "UnknownErrorOnChannel"));
        let gives_up = bench.take().contains(&SessionAction::Abandon);
        assert_eq!(gives_up, failure == JOINS_PER_SOCKET, "{failure}");
        bench.tick();
    }
    assert_eq!(bench.take(), [SessionAction::Dial]);
}

#[test]
fn joins_that_fail_now_and_then_between_long_lives_keep_the_socket() {
    let mut bench = SessionBench::live();
    let mut join = "1".to_owned();
    for _ in 0..2 * JOINS_PER_SOCKET {
        bench.receive(&closed(&join));
        bench.take();
        assert_eq!(bench.tick(), "join again");
        join = refs_of(&bench.frames(), "phx_join").concat();
        bench.receive(&join_ok(&join));
        bench.receive(&subscribed(&join));
        assert_eq!(bench.events(), [FeedEvent::Live(Transport::Changes)]);
    }
}

// The heartbeat.

#[test]
fn heartbeats_go_out_on_time_however_much_comes_in() {
    let mut bench = SessionBench::live();
    let started = bench.now;
    for second in 1..=25 {
        bench.now = started + Duration::from_secs(second);
        bench.receive(&update("visit_distribution"));
        bench.input(SessionInput::Tick);
    }
    assert_eq!(refs_of(&bench.frames(), "heartbeat"), ["2"]);
}

#[test]
fn answered_heartbeats_keep_the_socket_for_ever() {
    let mut bench = SessionBench::live();
    for _ in 0..1_000 {
        assert_eq!(bench.tick(), "heartbeat");
        let frames = bench.frames();
        let [heartbeat] = frames.as_slice() else {
            panic!("expected a heartbeat, found {frames:?}")
        };
        assert_eq!(
            (heartbeat.topic.as_str(), heartbeat.event.as_str()),
            ("phoenix", "heartbeat")
        );
        bench.receive(&heartbeat_answer(heartbeat.ref_.as_deref().expect("a ref")));
    }
}

#[test]
fn a_heartbeat_without_its_answer_by_the_next_means_a_dead_socket() {
    let mut bench = SessionBench::live();
    bench.tick();
    bench.take();
    bench.receive(&heartbeat_answer("1"));
    bench.receive(&update("visit_distribution"));
    bench.take();
    bench.tick();
    let actions = bench.take();
    let [
        SessionAction::Abandon,
        SessionAction::Emit(FeedEvent::Down(down)),
    ] = actions.as_slice()
    else {
        panic!("expected the socket to be dropped, found {actions:?}");
    };
    assert_eq!(down.failure.kind, ErrorKind::Network);
}

#[test]
fn an_answer_that_a_refused_join_held_back_for_five_seconds_is_in_time() {
    let mut bench = SessionBench::live();
    bench.tick();
    bench.now += Duration::from_secs(5);
    bench.receive(&heartbeat_answer("2"));
    bench.take();
    assert_eq!(bench.tick(), "heartbeat");
    assert!(!bench.take().contains(&SessionAction::Abandon));
}

#[test]
fn a_process_that_slept_through_the_limit_of_silence_opens_a_new_socket_at_once() {
    let mut bench = SessionBench::live();
    bench.now += SILENCE_LIMIT;
    bench.input(SessionInput::Tick);
    assert!(bench.take().contains(&SessionAction::Abandon));
}

// Commands.

#[test]
fn a_rejoin_asked_for_leaves_and_joins_at_once_on_the_same_socket() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Rejoin(
        Transport::Changes,
        "no echo within 10 s".to_owned(),
    ));
    let frames: Vec<String> = bench
        .frames()
        .into_iter()
        .map(|frame| frame.event)
        .collect();
    assert_eq!(frames, ["phx_leave", "phx_join"]);
}

#[test]
fn a_rejoin_asked_for_while_one_is_under_way_changes_nothing() {
    let mut bench = SessionBench::opened();
    bench.take();
    bench.command(FeedCommand::Rejoin(
        Transport::Changes,
        "no echo within 10 s".to_owned(),
    ));
    bench.receive(&join_refused("1", "UnknownErrorOnChannel"));
    bench.take();
    let due_in = bench.due_in();
    bench.command(FeedCommand::Rejoin(
        Transport::Changes,
        "no echo within 10 s".to_owned(),
    ));
    assert_eq!((bench.take(), bench.due_in()), (vec![], due_in));
}

#[test]
fn a_new_socket_asked_for_is_dialed_at_once() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Reopen("no echo after a rejoin".to_owned()));
    let actions = bench.take();
    assert!(matches!(
        actions.as_slice(),
        [SessionAction::Abandon, SessionAction::Emit(FeedEvent::Down(down)), SessionAction::Dial]
            if down.failure.kind == ErrorKind::Asked && down.retry_in.is_zero()
    ));
}

#[test]
fn a_shutdown_leaves_closes_and_ends() {
    let mut bench = SessionBench::live();
    bench.command(FeedCommand::Shutdown);
    let actions = bench.take();
    assert!(matches!(
        actions.as_slice(),
        [SessionAction::Send(leave), SessionAction::Close, SessionAction::Stop] if leave.event == "phx_leave"
    ));
    bench.receive(&update("visit_distribution"));
    bench.input(SessionInput::Closed("gone".to_owned()));
    bench.input(SessionInput::Tick);
    assert_eq!(
        (bench.take(), bench.session.next_deadline()),
        (vec![], None)
    );
}

#[test]
fn a_shutdown_while_waiting_or_dialing_ends_at_once() {
    let mut dialing = SessionBench::new();
    dialing.take();
    dialing.command(FeedCommand::Shutdown);
    assert_eq!(
        dialing.take(),
        [SessionAction::Abandon, SessionAction::Stop]
    );

    let mut waiting = SessionBench::live();
    waiting.input(SessionInput::Closed("gone".to_owned()));
    waiting.take();
    waiting.command(FeedCommand::Shutdown);
    assert_eq!(waiting.take(), [SessionAction::Stop]);
}
