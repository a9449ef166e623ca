//! Ends of the socket, and the delays between attempts.

use super::*;

#[test]
fn a_socket_that_ends_is_opened_again() {
    let mut bench = SessionBench::live();
    bench.input(SessionInput::Closed("code 1012".to_owned()));
    let actions = bench.take();
    assert!(matches!(
        actions.as_slice(),
        [
            SessionAction::Close,
            SessionAction::Emit(FeedEvent::Down(Down {
                failure: Failure {
                    kind: ErrorKind::Network,
                    ..
                },
                ..
            }))
        ]
    ));
    assert_eq!(bench.tick(), "open a socket again");
    assert_eq!(bench.take(), [SessionAction::Dial]);
    bench.input(SessionInput::Opened);
    assert_eq!(refs_of(&bench.frames(), "phx_join"), ["2"]);
}

#[test]
fn failures_to_connect_are_spaced_ever_wider_up_to_thirty_seconds_and_never_end() {
    let mut bench = SessionBench::new();
    bench.draw = u32::MAX;
    let mut delays = Vec::new();
    for _ in 0..100 {
        bench.take();
        bench.input(SessionInput::DialFailed(Failure::new(
            ErrorKind::Network,
            "refused",
        )));
        delays.push(bench.down().retry_in.as_secs());
        bench.tick();
    }
    assert_eq!(delays.get(..6), Some([2, 4, 8, 16, 30, 30].as_slice()));
    assert_eq!(delays.last(), Some(&30));
}

#[test]
fn a_refused_key_is_tried_again_slowly_up_to_five_minutes_and_never_given_up() {
    let mut bench = SessionBench::new();
    bench.draw = u32::MAX;
    let mut delays = Vec::new();
    for _ in 0..20 {
        bench.take();
        bench.input(SessionInput::DialFailed(Failure::new(
            ErrorKind::Key,
            "HTTP 401",
        )));
        delays.push(bench.down().retry_in.as_secs());
        bench.tick();
    }
    assert_eq!(delays.get(..6), Some([10, 20, 40, 80, 160, 300].as_slice()));
    assert_eq!(delays.last(), Some(&300));
}

#[test]
fn the_back_off_is_jittered_down_to_its_floor() {
    let mut bench = SessionBench::new();
    bench.draw = 0;
    for _ in 0..10 {
        bench.take();
        bench.input(SessionInput::DialFailed(Failure::new(
            ErrorKind::Network,
            "refused",
        )));
        assert_eq!(bench.down().retry_in, REALTIME.from);
        bench.tick();
    }
}

#[test]
fn the_back_off_is_reset_when_live_and_not_before() {
    let mut bench = SessionBench::new();
    bench.draw = u32::MAX;
    let mut retry_in = Vec::new();
    for is_live in [false, false, true, false] {
        bench.input(SessionInput::Opened);
        let join = refs_of(&bench.frames(), "phx_join").concat();
        bench.receive(&join_ok(&join));
        if is_live {
            bench.receive(&subscribed(&join));
        }
        bench.take();
        bench.input(SessionInput::Closed("gone".to_owned()));
        retry_in.push(bench.down().retry_in.as_secs());
        bench.tick();
        bench.take();
    }
    assert_eq!(retry_in, [2, 4, 2, 4]);
}

#[test]
fn a_socket_that_ends_during_a_slow_back_off_does_not_shorten_it() {
    let mut bench = SessionBench::opened();
    bench.take();
    bench.receive(&join_refused(
        "1",
        "ClientJoinRateLimitReached: Too many joins per second",
    ));
    let refused = bench.down();
    assert_eq!(refused.failure.kind, ErrorKind::Quota);
    bench.input(SessionInput::Closed("code 1001".to_owned()));
    assert_eq!(bench.down().retry_in, refused.retry_in);
}
