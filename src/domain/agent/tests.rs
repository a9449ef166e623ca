//! The jobs that the agent starts, and what follows from the answers.

use std::time::Duration;

use super::*;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::Failure;
use crate::domain::limits::{CANARY_EVERY, ECHO_WITHIN};
use crate::domain::schedule::Control;
use crate::domain::time::micros_of;
use crate::domain::transport::{Following, ListenBy, Transport};

use self::bench::{ALL_PUBLISHED, AgentBench, T0, edited, id, row};

mod bench;
mod both_transports;
mod faults;
mod sharing;
mod syncs;

#[test]
fn nothing_is_stored_before_the_first_full_sync_and_the_control_row_are_read() {
    let mut bench = AgentBench::new();
    bench.pass_to(2.0);
    assert_eq!(bench.take_batch(), None);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(vec![row(1, 10)]);
    bench.pass_to(3.0);
    assert!(bench.take_batch().is_some());

    let mut bench = AgentBench::new();
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(vec![row(1, 10)]);
    bench.now = AgentBench::at(5.0);
    bench.input(Input::Tick);
    assert_eq!(
        bench.take_batch(),
        None,
        "it does not know yet whether everything is paused"
    );
    assert!(!bench.agent.health().has_begun());
    let paused = Control {
        paused: true,
        ..Control::default()
    };
    bench.answer_heartbeat(paused);
    assert!(bench.agent.health().has_begun());
    bench.pass_to(8.0);
    assert_eq!(bench.take_batch(), None);
}

#[test]
fn it_is_caught_up_only_after_the_full_sync_that_follows_the_subscription() {
    let mut bench = AgentBench::paced(vec![row(1, 1)]);
    bench.pass_to(2.0);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
    bench.answer_read(vec![row(1, 1)]);
    assert!(!bench.agent.health().caught_up, "that read began before");
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::All),
        "so it is read again at once"
    );
    bench.answer_read(vec![row(1, 1)]);
    assert!(bench.agent.health().caught_up);
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
    assert!(
        !bench.agent.health().caught_up,
        "changes may have been missed"
    );
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(vec![row(1, 1)]);
    bench.input(Input::Realtime(RealtimeEvent::Down(Transport::Changes)));
    assert!(!bench.agent.health().caught_up);
}

#[test]
fn the_table_is_read_in_full_every_30_s_while_realtime_is_live_and_every_2_s_while_it_is_not() {
    let mut bench = AgentBench::live(&[]);
    bench.pass_to(29.9);
    assert_eq!(bench.take_read(), None);
    bench.pass_to(30.0);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(Vec::new());
    bench.input(Input::Realtime(RealtimeEvent::Down(Transport::Changes)));
    for second in [32.0, 34.0, 36.0] {
        bench.pass_to(second - 0.1);
        assert_eq!(bench.take_read(), None);
        bench.pass_to(second);
        assert_eq!(bench.take_read(), Some(ReadRequest::All));
        bench.answer_read(Vec::new());
    }
}

#[test]
fn an_event_leads_to_a_read_of_that_row_and_many_within_20_ms_to_one_read() {
    let mut bench = AgentBench::live(&[row(1, 0), row(2, 0)]);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        Some(5),
    )));
    bench.now = AgentBench::at(0.01);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(2),
        None,
    )));
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        None,
    )));
    assert_eq!(bench.take_read(), None);
    bench.pass_to(0.02);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Rows(vec![id(1), id(2)]))
    );
}

#[test]
fn an_event_with_the_version_that_is_known_costs_no_read() {
    let mut bench = AgentBench::live(&[row(1, 0)]);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        Some(1),
    )));
    bench.pass_to(1.0);
    assert_eq!(bench.take_read(), None);
    assert_eq!(bench.agent.counters().realtime.events_known, 1);
}

#[test]
fn a_row_of_an_event_that_does_not_exist_any_more_is_forgotten() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        None,
    )));
    bench.pass_to(0.02);
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(1)])));
    bench.answer_read(Vec::new());
    assert_eq!(bench.agent.rows(), 0);
    bench.pass_to(3.0);
    assert_eq!(bench.take_batch(), None);
}

#[test]
fn refused_rows_are_read_again_at_once_and_the_others_continue() {
    let mut bench = AgentBench::live(&[row(1, 10), row(2, 10)]);
    bench.pass_to(1.0);
    let batch = bench.take_batch().expect("both fire");
    assert_eq!(batch.rows.len(), 2);
    bench.stored([id(1)]);
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(2)])));
    bench.answer_read(vec![edited(row(2, 20))]);
    let batch = bench.take_batch().expect("row 2 is healed, and late");
    assert_eq!((batch.rows[0].id, batch.rows[0].version), (id(2), 2));
}

#[test]
fn without_realtime_a_pause_is_learnt_from_the_database_that_refuses_the_batch() {
    let mut bench = AgentBench::paced(vec![row(1, 10)]);
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.stored([]);
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(1)])));
    let mut paused = edited(row(1, 10));
    paused.row.is_active = Some(false);
    bench.answer_read(vec![paused]);
    bench.pass_to(1.9);
    assert_eq!((bench.take_batch(), bench.agent.running()), (None, 0));
}

#[test]
fn after_a_lost_answer_the_rows_are_read_before_the_batch_is_retried() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.pass_to(1.0);
    let batch = bench.take_batch().expect("due");
    bench.fail_batch(Failure::new(ErrorKind::Lost, "reset"));
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(1)])));
    bench.fail_read(Failure::new(ErrorKind::Lost, "refused"));
    bench.pass_to(5.0);
    assert_eq!(bench.take_batch(), None);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Rows(vec![id(1)])),
        "tried again after a while"
    );
    let mut committed = row(1, 10);
    committed.progress = Some(batch.rows[0].after.clone());
    bench.answer_read(vec![committed]);
    let next = bench.take_batch().expect("40 more are due");
    assert_eq!(
        next.rows[0].before.last_number, 10,
        "the lost batch had been committed"
    );
}

#[test]
fn an_unavailable_database_and_its_return_are_reported_once_each() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.events();
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.batch_unsent(Failure::new(ErrorKind::ShuttingDown, "starting up"));
    for second in [3.0, 15.0, 30.0] {
        bench.pass_to(second);
        assert!(
            bench.take_batch().is_some(),
            "tried again, at most 10 s later"
        );
        bench.batch_unsent(Failure::new(ErrorKind::ShuttingDown, "starting up"));
    }
    let away = |event: &&Event| {
        event.is(&Event::DATABASE_UNAVAILABLE) || event.is(&Event::DATABASE_AVAILABLE)
    };
    // Heartbeats are answered on this bench, yet nothing can be stored.
    let told = bench.events();
    let told: Vec<_> = told.iter().filter(away).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(bench.agent.health().database_away_since.is_some());
    bench.pass_to(45.0);
    let batch = bench.take_batch().expect("tried again");
    bench.stored(batch.rows.iter().map(|row| row.id));
    let told = bench.events();
    assert!(
        told.iter()
            .any(|event| event.is(&Event::DATABASE_AVAILABLE))
    );
    assert_eq!(bench.agent.health().database_away_since, None);
}

#[test]
fn a_worker_whose_job_failed_waits_before_the_next_one() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.pass_to(1.0);
    let batch = bench.take_batch();
    bench.batch_unsent(Failure::new(
        ErrorKind::ShuttingDown,
        "too many connections",
    ));
    bench.pass_to(1.199);
    assert_eq!(bench.take_batch(), None);
    bench.pass_to(1.4);
    assert_eq!(bench.take_batch(), batch);
}

#[test]
fn an_edit_whose_event_arrived_is_not_missed_though_a_sync_finds_it() {
    let mut bench = AgentBench::live(&[row(1, 0)]);
    bench.pass_to(29.99);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        Some(2),
    )));
    bench.pass_to(30.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::All),
        "it answers for the event too"
    );
    bench.answer_read(vec![edited(row(1, 0))]);
    assert_eq!(bench.agent.counters().reads.repaired, 0);
    bench.pass_to(45.0);
    assert_eq!(bench.take_reconnect(), None);
}

#[test]
fn an_edit_that_only_a_sync_finds_is_reported_and_a_reason_to_rejoin_unless_its_event_still_arrives()
 {
    for event_comes in [false, true] {
        let mut bench = AgentBench::live(&[row(1, 0)]);
        bench.pass_to(30.0);
        assert_eq!(bench.take_read(), Some(ReadRequest::All));
        bench.answer_read(vec![edited(row(1, 0))]);
        assert_eq!(bench.agent.counters().reads.repaired, 1);
        assert!(
            bench
                .events()
                .contains(&Event::EDITS_FOUND_BY_SYNC.count(1))
        );
        if event_comes {
            bench.input(Input::Realtime(RealtimeEvent::Row(
                Transport::Changes,
                id(1),
                Some(2),
            )));
        }
        bench.pass_to(41.0);
        let expected = (!event_comes).then_some(Reconnect::Rejoin);
        assert_eq!(bench.take_reconnect(), expected);
    }
}

#[test]
fn what_a_sync_finds_after_a_subscription_or_an_unclear_event_is_not_missed() {
    let mut bench = AgentBench::live(&[row(1, 0)]);
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(vec![edited(row(1, 0))]);
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(vec![edited(edited(row(1, 0))), row(2, 0)]);
    assert_eq!(bench.agent.counters().reads.repaired, 0);
}

#[test]
fn a_truncate_stops_every_row_and_is_no_reason_to_rejoin_since_it_causes_no_event() {
    let mut bench = AgentBench::live(&[row(1, 0), row(2, 0)]);
    bench.pass_to(30.0);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(Vec::new());
    assert_eq!(
        (bench.agent.rows(), bench.agent.counters().reads.repaired),
        (0, 0)
    );
}

#[test]
fn a_write_back_without_an_echo_in_ten_seconds_leads_to_a_rejoin() {
    for heard in [true, false] {
        let mut bench = AgentBench::live(&[row(1, 10)]);
        let is_write_back = |task: &MaintenanceTask| matches!(task, MaintenanceTask::WriteBack(_));
        let task = bench.pass_until_task(10.0, is_write_back);
        assert_eq!(task, Some(MaintenanceTask::WriteBack(vec![id(1)])));
        if heard {
            bench.input(Input::Realtime(RealtimeEvent::Row(
                Transport::Changes,
                id(1),
                Some(1),
            )));
        }
        bench.done(TaskOutcome::WroteBack(vec![WrittenBack {
            id: id(1),
            distributed: 10,
            changed: true,
        }]));
        let written_at = bench.now;
        while bench.now < written_at.plus(ECHO_WITHIN) && bench.take_reconnect().is_none() {
            let next = bench.now.plus(Duration::from_millis(500));
            bench.pass_to(Duration::from_micros(next.as_micros().unsigned_abs()).as_secs_f64());
            while let Some(batch) = bench.take_batch() {
                bench.stored(batch.rows.iter().map(|row| row.id));
            }
        }
        assert_eq!(
            bench.agent.counters().realtime.silent.changes,
            u64::from(!heard),
            "an echo that is quicker than the answer counts"
        );
    }
}

#[test]
fn while_nothing_is_written_back_the_canary_is_touched_every_minute() {
    let mut bench = AgentBench::live(&[]);
    bench.pass_to(59.9);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(Vec::new());
    assert_eq!(bench.take_task(), None);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::Canary(Transport::Changes))
    );
    bench.done(TaskOutcome::Canary);
    bench.input(Input::Realtime(RealtimeEvent::Canary(Transport::Changes)));
    let read_every = 29.0;
    let mut second = 60.0;
    while bench.now < AgentBench::at(119.9) {
        second = f64::min(second + read_every, 119.9);
        bench.pass_to(second);
        if bench.take_read().is_some() {
            bench.answer_read(Vec::new());
        }
    }
    assert_eq!(bench.take_task(), None);
    bench.pass_to(120.0);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::Canary(Transport::Changes))
    );
}

#[test]
fn a_canary_that_is_not_published_is_never_touched_and_the_agent_does_not_spin_for_it() {
    let mut bench = AgentBench::live(&[]);
    bench.input(Input::Realtime(RealtimeEvent::Unfollowed));
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    let without = Published {
        canary: false,
        ..ALL_PUBLISHED
    };
    bench.done(TaskOutcome::Publication(without));
    assert!(bench.asked.contains(&Action::Follow(Following::with(
        ListenBy::Auto,
        false,
        false
    ))));
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read(Vec::new());
    bench.pass_to(f64::from(u32::try_from(CANARY_EVERY.as_secs()).unwrap()) + 5.0);
    assert_eq!(bench.take_task(), None);
}

#[test]
fn while_the_database_is_unavailable_the_agent_does_not_spin() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    for _ in 0..400 {
        let Some((at, why)) = bench.agent.next_deadline(bench.now) else {
            break;
        };
        assert!(
            at > bench.now || bench.asked.is_empty(),
            "it spins for: {why}"
        );
        bench.now = bench.now.max(at);
        bench.input(Input::Tick);
        while let Some(action) = bench.asked.pop_front() {
            let away = || Failure::new(ErrorKind::Lost, "away");
            match action {
                Action::Store(_) => bench.fail_batch(away()),
                Action::Read(_) => bench.fail_read(away()),
                Action::Maintain(_) => bench.fail_task(away()),
                Action::Reconnect(..) | Action::Follow(_) | Action::Emit(_) => {}
            }
        }
    }
    let seconds = bench.now.since(Mono::from_micros(0)).as_secs();
    assert!(seconds > 300, "400 ticks lasted only {seconds} s");
}

#[test]
fn the_publication_is_checked_again_when_the_answer_was_lost() {
    let mut bench = AgentBench::new();
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::Heartbeat { serving: false })
    );
    bench.answer_heartbeat(Control::default());
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.published.canary = false;
    bench.fail_task(Failure::new(ErrorKind::Lost, "away"));
    bench.pass_to(2.0);
    let without = Following::with(ListenBy::Auto, false, false);
    assert!(bench.asked.contains(&Action::Follow(without)));
}

#[test]
fn a_completed_row_is_written_back_at_once_and_again_if_it_was_locked_or_the_answer_was_lost() {
    let mut last = row(1, 10);
    last.row.total_visits = Some("10".into());
    let mut bench = AgentBench::live(&[last]);
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.stored([id(1)]);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::WriteBack(vec![id(1)])),
        "at once"
    );
    bench.done(TaskOutcome::WroteBack(Vec::new()));
    bench.pass_to(1.2);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::WriteBack(vec![id(1)]))
    );
    bench.fail_task(Failure::new(ErrorKind::Lost, "reset"));
    bench.pass_to(2.0);
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::WriteBack(vec![id(1)]))
    );
    bench.done(TaskOutcome::WroteBack(vec![WrittenBack {
        id: id(1),
        distributed: 10,
        changed: true,
    }]));
    bench.pass_to(5.0);
    assert_eq!(bench.take_task(), None);
}

#[test]
fn a_running_row_is_written_back_every_five_seconds_at_the_most() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    let mut written: Vec<Mono> = Vec::new();
    while let Some(MaintenanceTask::WriteBack(_)) =
        bench.pass_until_task(29.0, |task| matches!(task, MaintenanceTask::WriteBack(_)))
    {
        written.push(bench.now);
        let distributed = bench.agent.statuses(bench.now)[0].distributed;
        bench.done(TaskOutcome::WroteBack(vec![WrittenBack {
            id: id(1),
            distributed,
            changed: true,
        }]));
        bench.input(Input::Realtime(RealtimeEvent::Row(
            Transport::Changes,
            id(1),
            Some(1),
        )));
    }
    assert!((5..=6).contains(&written.len()), "{written:?}");
    assert!(
        written
            .windows(2)
            .all(|pair| pair[1].since(pair[0]) >= Duration::from_secs(5))
    );
}

#[test]
fn a_quarantined_row_is_reported_once_and_again_when_it_is_corrected() {
    let mut bad = row(1, 10);
    bad.row.time_period = Some("week".into());
    let mut bench = AgentBench::live(&[bad]);
    bench.pass_to(30.0);
    let mut corrected = edited(row(1, 10));
    corrected.written = None;
    bench.answer_read(vec![corrected]);
    let told: Vec<Event> = bench.events();
    assert!(told.contains(&Event::RELEASED.of(id(1))), "{told:?}");

    let mut bench = AgentBench::new();
    let mut bad = row(1, 10);
    bad.row.time_period = Some("week".into());
    bench.answer_read(vec![bad.clone()]);
    bench.pass_to(2.5);
    bench.answer_read(vec![bad]);
    let quarantine = |event: &&Event| event.is(&Event::QUARANTINED);
    assert_eq!(bench.events().iter().filter(quarantine).count(), 1);
}

#[test]
fn an_invalid_row_is_never_written_back() {
    let mut bad = row(1, 10);
    bad.row.total_visits = Some("-3".into());
    bad.written = None;
    let mut bench = AgentBench::live(&[bad]);
    bench.pass_to(20.0);
    assert_eq!(bench.take_task(), None);
}

#[test]
fn a_row_that_no_trigger_has_seen_is_anchored_and_not_reported_as_quarantined() {
    let mut unseen = row(1, 10);
    (
        unseen.row.config_version,
        unseen.row.anchor_at,
        unseen.progress,
    ) = (None, None, None);
    let mut bench = AgentBench::new();
    bench.answer_read(vec![unseen]);
    bench.answer_heartbeats();
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(ALL_PUBLISHED));
    assert_eq!(bench.take_task(), Some(MaintenanceTask::Initialise));
    bench.done(TaskOutcome::Initialised(1));
    bench.take_read();
    bench.answer_read(vec![row(1, 10)]);
    let told = bench.events();
    assert!(told.contains(&Event::ANCHORED.count(1)));
    assert!(
        !told
            .iter()
            .any(|event| event.is(&Event::QUARANTINED) || event.is(&Event::EDITS_FOUND_BY_SYNC)),
        "{told:?}"
    );
    bench.now = AgentBench::at(1.0);
    bench.input(Input::Tick);
    assert!(bench.take_batch().is_some());
}

#[test]
fn a_row_whose_insert_fails_keeps_its_reason_in_the_database() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.fail_batch(Failure::new(ErrorKind::Data, "no such page"));
    let mark = MaintenanceTask::MarkInvalid(id(1), "no such page".to_owned());
    assert_eq!(bench.take_task(), Some(mark.clone()));
    bench.done(TaskOutcome::MarkedInvalid(false));
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        None,
    )));
    bench.pass_to(1.5);
    bench.take_read();
    bench.answer_read(vec![row(1, 10)]);
    let told = bench.events();
    assert!(
        !told.contains(&Event::RELEASED.of(id(1))),
        "nothing has corrected it: {told:?}"
    );
    bench.pass_to(3.0);
    assert_eq!(
        bench.take_task(),
        Some(mark),
        "somebody held the row, so it is tried again"
    );
    bench.done(TaskOutcome::MarkedInvalid(true));
    bench.keep_until(6.0);
    assert!(told.contains(&Event::QUARANTINED.of(id(1)).because("no such page")));
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(1),
        None,
    )));
    bench.pass_to(6.5);
    bench.take_read();
    bench.answer_read(vec![edited(row(1, 10))]);
    assert!(
        bench.events().contains(&Event::RELEASED.of(id(1))),
        "an edit ends it"
    );
}

#[test]
fn a_locked_row_does_not_use_up_the_agents_limit() {
    let mut bench = AgentBench::live(&[row(1, 1_500), row(2, 900)]);
    bench.pass_to(1.0);
    let mut statements = 0;
    while let Some(batch) = bench.take_batch() {
        bench.stored(
            batch
                .rows
                .iter()
                .map(|row| row.id)
                .filter(|row| *row == id(2)),
        );
        if bench.take_read().is_some() {
            bench.answer_read(vec![row(1, 1_500)]);
        }
        statements += 1;
        assert!(statements < 10);
    }
    bench.pass_to(1.05);
    let batch = bench.take_batch().expect("the held row is tried again");
    assert!(
        batch.visits() >= 1_000,
        "{} of the 2,000 less 900",
        batch.visits()
    );
}

#[test]
fn a_step_of_the_databases_clock_is_reported_and_followed() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.db_offset_us = micros_of(Duration::from_hours(1));
    bench.stored([id(1)]);
    assert!(bench.events().contains(&Event::CLOCK_STEPPED));
    let batch = bench.take_batch().expect("an hour is due");
    assert!(batch.rows[0].at >= DbTime::from_micros(T0 + bench.db_offset_us));
}

#[test]
fn a_row_that_waits_for_a_retry_does_not_wait_longer_when_the_databases_clock_steps_back() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.now = AgentBench::at(100.0);
    bench.input(Input::Tick);
    assert!(bench.take_batch().is_some());
    bench.fail_batch(Failure::new(ErrorKind::Data, "no such page"));
    assert_eq!(
        bench.take_batch(),
        None,
        "it would be tried again in a minute"
    );
    bench.db_offset_us = -micros_of(Duration::from_secs(50));
    bench.answer_read(vec![row(1, 10)]);
    let batch = bench.take_batch().expect("now it is tried at once");
    assert_eq!(
        batch.rows[0].at,
        DbTime::from_micros(T0).plus_micros(50 * 1_000_000)
    );
}

#[test]
fn a_stop_finishes_the_jobs_in_hand_and_starts_none() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.pass_to(1.0);
    assert!(bench.take_batch().is_some());
    bench.asked.clear();
    bench.input(Input::Stop);
    assert!(!bench.agent.is_idle());
    assert_eq!(bench.agent.next_deadline(bench.now), None);
    bench.stored([id(1)]);
    bench.pass_to(9.0);
    assert!(bench.agent.is_idle());
    assert_eq!(
        (
            bench.asked.pop_front(),
            bench.agent.counters().writes.visits
        ),
        (None, 10)
    );
}

#[test]
fn missing_visits_are_reported_once() {
    let mut bench = AgentBench::paced(vec![row(1, 1)]);
    let finding = CountDifference {
        id: id(1),
        missing: 5,
        changed: false,
        message: "5 visits are missing".to_owned(),
    };
    bench.differences = vec![finding];
    bench.store_until(700.0);
    let told = bench.events();
    let missing = |event: &&Event| event.is(&Event::VISITS_MISSING);
    assert_eq!(told.iter().filter(missing).count(), 1, "{told:?}");
    assert!(bench.reconciled > 1, "compared every 5 minutes");
}

#[test]
fn counts_are_compared_after_the_first_sync() {
    let mut bench = AgentBench::new();
    bench.answer_read(vec![row(1, 0), row(2, 0)]);
    bench.answer_heartbeats();
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(ALL_PUBLISHED));
    assert_eq!(
        bench.take_task(),
        Some(MaintenanceTask::Reconcile(vec![id(1), id(2)]))
    );
}
