//! Inputs in any order, at any time: what holds whatever happens.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Happening {
    Opened,
    DialFailed,
    Closed,
    Tick,
    Pass(u64),
    Message(u8),
    Rejoin,
    Reopen,
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => Just(Happening::Opened),
        1 => Just(Happening::DialFailed),
        1 => Just(Happening::Closed),
        4 => Just(Happening::Tick),
        1 => (0_u64..400).prop_map(Happening::Pass),
        6 => (0_u8..8).prop_map(Happening::Message),
        1 => Just(Happening::Rejoin),
        1 => Just(Happening::Reopen),
    ]
}

/// A message of the server, mostly about the join sent last.
fn message(kind: u8, join: &str) -> String {
    match kind {
        0 | 1 => join_ok(join),
        2 => subscribed(join),
        3 => closed(join),
        4 => join_refused(join, "UnknownErrorOnChannel"),
        5 => system(join, "error", "system", "Token has expired 0 seconds ago"),
        6 => update("visit_distribution"),
        _ => closed("1"),
    }
}

proptest! {
    /// One join in flight; live only where it was confirmed; always something to wait for.
    #[test]
    fn whatever_happens_the_session_stays_in_order_and_goes_on(
        happenings in prop::collection::vec((any_happening(), any::<u32>()), 0..200),
    ) {
        let mut bench = SessionBench::new();
        let mut join = "0".to_owned();
        prop_assert_eq!(bench.take(), [SessionAction::Dial]);
        let mut joins_in_flight = 0;
        let mut dials_in_flight = 1;
        for (happening, draw) in happenings {
            bench.draw = draw;
            match happening {
                Happening::Opened => {
                    dials_in_flight = 0;
                    bench.input(SessionInput::Opened);
                }
                Happening::DialFailed => {
                    dials_in_flight = 0;
                    let refused = Failure::new(ErrorKind::Network, "refused");
                    bench.input(SessionInput::DialFailed(refused));
                }
                Happening::Closed => bench.input(SessionInput::Closed("gone".to_owned())),
                Happening::Tick => bench.input(SessionInput::Tick),
                Happening::Pass(seconds) => bench.now += Duration::from_secs(seconds),
                Happening::Message(kind) => {
                    if kind == 4 || kind < 2 {
                        joins_in_flight = 0;
                    }
                    bench.receive(&message(kind, &join));
                }
                Happening::Rejoin => bench.command(FeedCommand::Rejoin(Transport::Changes, "asked".to_owned())),
                Happening::Reopen => bench.command(FeedCommand::Reopen("asked".to_owned())),
            }
            for action in bench.take() {
                match action {
                    SessionAction::Send(frame) if frame.event == "phx_join" => {
                        prop_assert_eq!(joins_in_flight, 0);
                        joins_in_flight += 1;
                        join = frame.ref_.unwrap_or_default();
                    }
                    SessionAction::Send(frame) if frame.event == "phx_leave" => joins_in_flight = 0,
                    SessionAction::Dial => {
                        prop_assert_eq!(dials_in_flight, 0);
                        dials_in_flight += 1;
                        joins_in_flight = 0;
                    }
                    SessionAction::Emit(FeedEvent::Down(down)) => {
                        prop_assert!(down.retry_in <= REALTIME_SLOW.to);
                        joins_in_flight = 0;
                    }
                    SessionAction::Stop => prop_assert!(false, "nobody asked it to end"),
                    SessionAction::Send(_) | SessionAction::Close | SessionAction::Abandon | SessionAction::Emit(_) => {}
                }
            }
            let waits = bench.session.next_deadline().is_some();
            prop_assert!(waits || matches!(bench.session.phase, Phase::Dialing));
        }
    }
}
