//! Two transports: each is live, checked and reconnected by itself.

use super::*;

const BOTH: Published = Published {
    broadcasts: true,
    ..ALL_PUBLISHED
};

fn both_live() -> AgentBench {
    let mut bench = AgentBench::live(&[row(1, 1)]);
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Broadcast)));
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::All),
        "each subscription is followed by a sync"
    );
    bench.answer_read(vec![row(1, 1)]);
    bench
}

#[test]
fn broadcasts_are_followed_where_the_database_has_them() {
    let mut bench = AgentBench::live(&[]);
    bench.input(Input::Realtime(RealtimeEvent::Unfollowed));
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(BOTH));
    let both = Following::with(ListenBy::Auto, true, true);
    assert!(bench.asked.contains(&Action::Follow(both)));
}

/// A full sync of a database that publishes this; the actions that follow.
fn synced_with(bench: &mut AgentBench, published: Published) -> Vec<Action> {
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.asked.clear();
    bench.published = published;
    bench.answer_read(vec![row(1, 1)]);
    bench.asked.drain(..).collect()
}

#[test]
fn each_sync_notices_that_broadcasts_have_started_or_stopped() {
    let mut bench = AgentBench::live(&[row(1, 1)]);
    for (published, broadcast) in [(BOTH, true), (ALL_PUBLISHED, false), (BOTH, true)] {
        let asked = synced_with(&mut bench, published);
        let following = Following::with(ListenBy::Auto, true, broadcast);
        assert!(asked.contains(&Action::Follow(following)), "{asked:?}");
        let event = if broadcast {
            Event::BROADCASTS_STARTED
        } else {
            Event::BROADCASTS_STOPPED
        };
        assert!(asked.contains(&Action::Emit(event)));
        assert_eq!(synced_with(&mut bench, published), [], "once");
    }
}

#[test]
fn a_table_that_was_removed_from_the_publication_is_subscribed_to_again() {
    let mut bench = AgentBench::live(&[row(1, 1)]);
    let same = Action::Follow(Following::with(ListenBy::Auto, true, false));
    for (published, anew) in [
        (
            Published {
                visits: true,
                ..ALL_PUBLISHED
            },
            false,
        ),
        (
            Published {
                distributions: false,
                ..ALL_PUBLISHED
            },
            true,
        ),
        (ALL_PUBLISHED, true),
    ] {
        let asked = synced_with(&mut bench, published);
        assert_eq!(asked.contains(&same), anew, "{published:?}");
    }
}

#[test]
fn a_canary_that_cannot_be_sent_is_no_outage_and_not_retried_at_once() {
    let mut bench = AgentBench::live(&[]);
    bench.input(Input::Realtime(RealtimeEvent::Unfollowed));
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(BOTH));
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Broadcast)));
    let is_canary = |task: &MaintenanceTask| *task == MaintenanceTask::Canary(Transport::Broadcast);
    assert!(bench.pass_until_task(70.0, is_canary).is_some());
    let refused = Failure::new(ErrorKind::Schema, "no such function");
    bench.fail_task(refused.clone());
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::CheckPublication),
        "it looks why"
    );
    bench.done(TaskOutcome::Publication(BOTH));
    let event = Event::STATEMENT_FAILED.failure(&refused);
    assert!(bench.events().contains(&event));
    assert_eq!(bench.agent.health().database_away_since, None);
    let tried_again = AgentBench::at(119.0);
    assert_eq!(bench.pass_until_task(119.0, is_canary), None);
    assert!(bench.now >= tried_again);
}

#[test]
fn it_is_blind_only_when_neither_transport_is_live() {
    for (first, second) in [
        (Transport::Changes, Transport::Broadcast),
        (Transport::Broadcast, Transport::Changes),
    ] {
        let mut bench = both_live();
        bench.input(Input::Realtime(RealtimeEvent::Down(first)));
        let health = bench.agent.health();
        assert!(
            health.live_since.is_some() && health.caught_up,
            "{second:?} is live"
        );
        bench.input(Input::Realtime(RealtimeEvent::Down(second)));
        let health = bench.agent.health();
        assert!(health.live_since.is_none() && health.down_since.is_some());
        bench.input(Input::Realtime(RealtimeEvent::Live(first)));
        assert!(bench.agent.health().live_since.is_some());
    }
}

#[test]
fn the_same_edit_by_both_transports_is_read_once() {
    let mut bench = both_live();
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Broadcast,
        id(1),
        Some(2),
    )));
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        Some(2),
    )));
    bench.pass_to(0.1);
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(1)])));
    bench.answer_read(vec![edited(row(1, 1))]);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        Some(2),
    )));
    bench.pass_to(0.2);
    assert_eq!(bench.take_read(), None);
    assert_eq!(bench.agent.counters().realtime.events_known, 1);
}

#[test]
fn a_broadcast_canary_that_does_not_arrive_has_only_that_channel_rejoined() {
    let mut bench = AgentBench::live(&[]);
    bench.input(Input::Realtime(RealtimeEvent::Unfollowed));
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(BOTH));
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Broadcast)));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(Vec::new());
    let mut second = 0.0;
    while bench.now < AgentBench::at(59.9) {
        second = f64::min(second + 29.0, 59.9);
        bench.pass_to(second);
        if bench.take_read().is_some() {
            bench.answer_read(Vec::new());
        }
    }
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::Canary(Transport::Broadcast))
    );
    bench.done(TaskOutcome::Canary);
    bench.input(Input::Realtime(RealtimeEvent::Canary(Transport::Changes)));
    bench.pass_to(70.0);
    let revived = bench.take(|action| match action {
        Action::Reconnect(transport, reconnect) => Some((*transport, *reconnect)),
        _ => None,
    });
    assert_eq!(revived, Some((Transport::Broadcast, Reconnect::Rejoin)));
    let silent = bench.agent.counters().realtime.silent;
    assert_eq!((silent.changes, silent.broadcast), (0, 1));
}
