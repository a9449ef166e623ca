//! The schedule, as the contract has it.

use super::*;
use crate::domain::bucket::Bucket;
use crate::domain::distribution::Distribution;

use self::bench::{ScheduleBench, T0, at, id, row};

mod bench;

#[test]
fn a_row_fires_once_a_second_and_what_is_stored_then_equals_the_curve() {
    let mut bench = ScheduleBench::new([row(1, "3.7")]);
    for second in 1..=30 {
        let now = f64::from(second);
        assert_eq!(bench.deadline(), Some(now));
        assert_eq!(bench.plan_at(now - 0.001), None, "not before its instant");
        let stored = bench.fire_at(now);
        assert_eq!(stored.len(), 1, "one statement a second");
        assert_eq!(bench.look(1).distributed, bench.look(1).due);
    }
    assert_eq!(bench.look(1).distributed, 111);
}

#[test]
fn visits_are_numbered_on_and_each_has_its_own_moment() {
    let mut bench = ScheduleBench::new([row(1, "4")]);
    let first = bench.plan_at(1.0).expect("four are due");
    assert_eq!(
        (
            first.rows[0].before.last_number,
            first.rows[0].after.last_number
        ),
        (0, 4)
    );
    assert_eq!(
        first.rows[0].visit_times,
        [0.125, 0.375, 0.625, 0.875].map(at)
    );
    bench.store(&first);
    let second = bench.plan_at(2.0).expect("four more");
    assert_eq!(second.rows[0].before, first.rows[0].after);
}

#[test]
fn a_row_in_which_nothing_is_due_is_not_woken() {
    let mut slow = row(1, "1");
    slow.row.time_period = Some("minute".into());
    let mut bench = ScheduleBench::new([slow]);
    assert_eq!(bench.deadline(), Some(30.0), "the curve reaches a half");
    assert_eq!(bench.fire_at(30.0), [1]);
    assert_eq!(bench.deadline(), Some(90.0));
}

#[test]
fn a_late_fire_stores_what_was_due_at_the_latest_instant_that_has_passed() {
    let mut bench = ScheduleBench::new([row(1, "2")]);
    let batch = bench.plan_at(3.9).expect("due");
    assert_eq!(batch.rows[0].at, at(3.0));
    assert_eq!(batch.visits(), 5, "six are due, five are in the bucket");
}

#[test]
fn a_fire_of_more_than_a_thousand_visits_takes_several_statements_one_after_another() {
    let mut bench = ScheduleBench::new([row(1, "2500")]);
    assert_eq!(bench.fire_at(1.0), [1_000, 1_000, 500]);
    assert_eq!(bench.look(1).distributed, 2_500);
    assert_eq!(bench.deadline(), Some(2.0));
}

#[test]
fn a_statement_holds_at_most_ten_thousand_visits() {
    let mut bench = ScheduleBench::new((1..=25).map(|n| row(n, "600")));
    let statements = bench.fire_at(1.0);
    assert_eq!(statements, [10_000, 5_000]);
    assert!((1..=25).all(|n| bench.look(n).distributed == 600));
}

#[test]
fn a_backlog_drains_at_twice_the_pace_and_not_in_a_burst() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let mut stored: Vec<i64> = Vec::new();
    for second in 60..130 {
        stored.push(bench.fire_at(f64::from(second)).iter().sum());
    }
    assert_eq!(stored[0], 21, "what the bucket holds");
    assert!(
        stored[1..58].iter().all(|visits| *visits == 20),
        "{stored:?}"
    );
    assert!(
        stored[60..].iter().all(|visits| *visits == 10),
        "{stored:?}"
    );
    assert_eq!(bench.look(1).distributed, 1_290);
}

#[test]
fn while_it_drains_it_is_behind_for_the_bucket() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    bench.fire_at(60.0);
    let look = bench.look(1);
    assert_eq!(
        (look.status, look.stall),
        (Status::Behind, Some(Stall::Bucket))
    );
    for second in 61..140 {
        bench.fire_at(f64::from(second));
    }
    let look = bench.look(1);
    assert_eq!((look.status, look.stall), (Status::Active, None));
}

#[test]
fn the_agents_bound_is_shared_max_min_fairly() {
    let mut bench = ScheduleBench::new([row(1, "5"), row(2, "100"), row(3, "900")]);
    bench.now = at(1.0);
    let batch = bench.schedule.plan(bench.now, 305).expect("due");
    let shares: BTreeMap<Uuid, i64> = batch
        .rows
        .iter()
        .map(|row| (row.id, row.visits()))
        .collect();
    assert_eq!(
        shares,
        BTreeMap::from([(id(1), 5), (id(2), 100), (id(3), 200)])
    );
    bench.store(&batch);
    assert_eq!(
        bench.deadline(),
        Some(2.0),
        "the rest waits for the next fire"
    );
}

#[test]
fn a_bound_that_binds_for_long_starves_nobody() {
    let mut bench =
        ScheduleBench::new((1..=30).map(|n| row(n, if n % 2 == 0 { "1" } else { "2.5" })));
    for second in 1..=60 {
        bench.now = at(f64::from(second));
        let batch = bench.schedule.plan(bench.now, 7).expect("due");
        assert_eq!(batch.visits(), 7);
        bench.store(&batch);
    }
    let counts: Vec<i64> = (1..=30).map(|n| bench.look(n).distributed).collect();
    assert!(
        counts.iter().all(|count| (12..=15).contains(count)),
        "420 visits for 30 rows: {counts:?}"
    );
}

#[test]
fn a_row_that_somebody_holds_is_tried_again_after_50_ms_100_ms_up_to_a_second_and_never_set_aside()
{
    let mut bench = ScheduleBench::new([row(1, "1")]);
    let mut now = 1.0;
    let mut waits = Vec::new();
    for _ in 0..12 {
        let batch = bench.plan_at(now).expect("due");
        assert_eq!(bench.refuse(&batch), [id(1)]);
        assert_eq!(bench.deadline(), None, "not before it was read again");
        bench.read(bench.as_known(row(1, "1")));
        let next = bench.deadline().expect("tried again");
        waits.push(micros_of(Duration::from_secs_f64(next - now)) / 1_000);
        now = next;
    }
    assert!(
        waits.starts_with(&[50, 100, 200, 400, 800, 1_000, 1_000]),
        "{waits:?}"
    );
    let look = bench.look(1);
    assert_eq!(
        (look.status, look.stall, look.reason),
        (Status::Behind, Some(Stall::Locked), None)
    );
    let batch = bench.plan_at(now).expect("due");
    assert_eq!(
        bench.look(1).stall,
        Some(Stall::Locked),
        "while it is tried"
    );
    bench.refuse(&batch);
    bench.read(bench.as_known(row(1, "1")));
    let now = bench.deadline().expect("tried again");
    bench.fire_at(now);
    let batch = bench.plan_at(now + 2.0).expect("due");
    bench.refuse(&batch);
    bench.read(bench.as_known(row(1, "1")));
    assert!(
        bench.deadline().expect("tried again") < now + 2.06,
        "from the start after a success"
    );
}

#[test]
fn a_row_that_was_refused_since_it_was_edited_is_healed_by_the_read_and_fires_at_once() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    assert_eq!(batch.rows[0].version, 1);
    bench.refuse(&batch);
    let mut edited = bench.as_known(row(1, "20"));
    edited.row.config_version = Some(2);
    assert_eq!(bench.read(edited), Applied::Changed);
    let batch = bench.plan_at(1.0).expect("due");
    assert_eq!((batch.rows[0].version, batch.visits()), (2, 20));
}

#[test]
fn a_row_that_was_refused_since_another_agent_moved_it_goes_on_from_there() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    bench.refuse(&batch);
    let mut moved = row(1, "10");
    moved.progress = Some(batch.rows[0].after.clone());
    assert_eq!(bench.read(moved), Applied::Nothing);
    assert_eq!(bench.deadline(), Some(2.0));
    assert_eq!(
        bench.plan_at(2.0).expect("due").rows[0].before.last_number,
        10
    );
}

#[test]
fn after_an_answer_that_was_lost_nothing_is_tried_before_the_truth_was_read_back() {
    let mut bench = ScheduleBench::new([row(1, "10"), row(2, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    let early = bench.sequence();
    assert_eq!(bench.lose(&batch), [id(1), id(2)]);
    assert_eq!(bench.plan_at(5.0), None);
    let stale = bench
        .schedule
        .apply(id(1), Some(row(1, "10")), early, bench.now);
    assert_eq!(stale, Applied::Nothing);
    assert_eq!(
        bench.plan_at(5.0),
        None,
        "a read that began before the loss says nothing"
    );
    let mut committed = row(1, "10");
    committed.progress = Some(batch.rows[0].after.clone());
    bench.read(committed);
    bench.read(row(2, "10"));
    let again = bench.plan_at(5.0).expect("due");
    let from: BTreeMap<Uuid, i64> = again
        .rows
        .iter()
        .map(|row| (row.id, row.before.last_number))
        .collect();
    assert_eq!(from, BTreeMap::from([(id(1), 10), (id(2), 0)]));
}

#[test]
fn a_batch_that_fails_is_halved_until_the_bad_row_is_alone_and_the_others_go_on() {
    let mut bench = ScheduleBench::new((1..=37).map(|n| row(n, "1")));
    let bad = id(23);
    let mut failures = 0;
    let mut alone = None;
    while let Some(batch) = bench.plan_at(1.0) {
        if batch.rows.iter().any(|row| row.id == bad) {
            failures += 1;
            alone = bench.schedule.halve(&batch, bench.now);
            if let Some(id) = alone {
                bench.schedule.quarantine(id, "no such page", bench.now);
            }
        } else {
            bench.store(&batch);
        }
        assert!(failures < 10, "37 rows are halved six times");
    }
    assert_eq!(alone, Some(bad));
    assert!(
        (1..=37)
            .filter(|n| id(*n) != bad)
            .all(|n| bench.look(n).distributed == 1)
    );
    let look = bench.look(23);
    assert_eq!(
        (look.status, look.reason.as_deref()),
        (Status::Invalid, Some("no such page"))
    );
}

/// A row whose insert has just failed at second 1.
fn failed_row() -> ScheduleBench {
    let mut bench = ScheduleBench::new([row(1, "1")]);
    let batch = bench.plan_at(1.0).expect("due");
    assert_eq!(bench.schedule.halve(&batch, bench.now), Some(id(1)));
    bench.schedule.quarantine(id(1), "why", bench.now);
    bench
}

#[test]
fn a_row_whose_insert_fails_is_tried_again_after_a_minute_even_if_it_is_read_meanwhile() {
    let mut bench = failed_row();
    assert_eq!(bench.deadline(), Some(61.0));
    bench.now = at(2.0);
    bench.read(row(1, "1"));
    assert_eq!(
        bench.deadline(),
        Some(61.0),
        "the reason is not yet kept in progress"
    );
    assert_eq!(bench.fire_at(61.0), [3], "what its bucket holds");
    assert_eq!(bench.look(1).reason, None, "it is mended");
}

#[test]
fn a_row_whose_insert_fails_is_tried_again_at_once_after_an_edit() {
    let mut bench = failed_row();
    bench.now = at(2.0);
    let mut edited = row(1, "1");
    edited.row.config_version = Some(2);
    bench.read(edited);
    assert_eq!(bench.fire_at(2.0), [2]);
}

#[test]
fn while_the_control_row_pauses_everything_nothing_fires_and_then_the_backlog_drains() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let paused = Control {
        paused: true,
        ..Control::default()
    };
    bench.schedule.set_control(paused, bench.now);
    assert_eq!((bench.deadline(), bench.plan_at(5.0)), (None, None));
    bench.now = at(30.0);
    bench.schedule.set_control(Control::default(), bench.now);
    assert_eq!(bench.fire_at(30.0), [21]);
}

#[test]
fn a_row_that_is_refused_while_everything_is_paused_counts_as_free_again_at_once() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    bench.refuse(&batch);
    let paused = Control {
        paused: true,
        ..Control::default()
    };
    bench.schedule.set_control(paused, bench.now);
    bench.read(row(1, "10"));
    bench.schedule.set_control(Control::default(), bench.now);
    assert_eq!(bench.deadline(), Some(1.0));
}

#[test]
fn the_control_rows_catch_up_is_for_rows_that_have_none_of_their_own() {
    let mut own = row(2, "10");
    own.row.catch_up = Some("1".into());
    let mut bench = ScheduleBench::new([row(1, "10"), own]);
    let control = Control {
        catch_up_milli: 5_000,
        ..Control::default()
    };
    bench.schedule.set_control(control, bench.now);
    let batch = bench.plan_at(60.0).expect("due");
    let visits: Vec<i64> = batch.rows.iter().map(BatchRow::visits).collect();
    assert_eq!(visits, [51, 11]);
}

#[test]
fn a_read_that_began_earlier_never_overwrites_what_a_later_one_found() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let early = bench.sequence();
    let mut newer = row(1, "20");
    newer.row.config_version = Some(3);
    assert_eq!(bench.read(newer), Applied::Changed);
    let mut older = row(1, "30");
    older.row.config_version = Some(2);
    assert_eq!(
        bench.schedule.apply(id(1), Some(older), early, bench.now),
        Applied::Nothing
    );
    assert_eq!(
        bench.schedule.apply(id(1), None, early, bench.now),
        Applied::Nothing
    );
    assert_eq!(bench.schedule.version(id(1)), Some(3));
}

#[test]
fn a_read_that_began_before_our_own_batch_was_answered_does_not_take_its_progress_back() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let early = bench.sequence();
    assert_eq!(bench.fire_at(1.0), [10]);
    bench
        .schedule
        .apply(id(1), Some(row(1, "10")), early, bench.now);
    assert_eq!(bench.look(1).distributed, 10);
}

#[test]
fn a_version_that_goes_back_is_applied_like_any_other_that_differs() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let mut restored = row(1, "20");
    restored.row.config_version = Some(0);
    assert_eq!(bench.read(restored), Applied::Changed);
}

#[test]
fn a_row_that_changed_without_its_version_since_triggers_were_off_is_taken_over_all_the_same() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    assert_eq!(bench.read(row(1, "NaN")), Applied::Changed);
    assert_eq!(bench.look(1).status, Status::Invalid);
    assert_eq!(bench.deadline(), None);
}

#[test]
fn an_edit_while_a_batch_is_in_flight_is_planned_from_once_the_batch_is_answered() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    let mut edited = row(1, "10");
    edited.row.config_version = Some(2);
    edited.row.is_active = Some(false);
    assert_eq!(bench.read(edited), Applied::Changed);
    assert_eq!(bench.plan_at(3.0), None);
    bench.refuse(&batch);
    let mut edited = row(1, "10");
    edited.row.config_version = Some(2);
    edited.row.is_active = Some(false);
    bench.read(edited);
    assert_eq!(
        (bench.deadline(), bench.look(1).status),
        (None, Status::Paused)
    );
}

#[test]
fn a_deleted_row_stops_at_once_also_when_its_batch_is_in_flight() {
    let mut bench = ScheduleBench::new([row(1, "10"), row(2, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    assert_eq!(bench.gone(1), Applied::Removed);
    assert_eq!(bench.gone(1), Applied::Nothing);
    bench.store(&batch);
    assert_eq!((bench.schedule.len(), bench.schedule.running()), (1, 1));
    assert_eq!(bench.plan_at(2.0).expect("due").rows.len(), 1);
}

#[test]
fn a_full_read_that_finds_nothing_removes_what_was_known_when_it_began() {
    let mut bench = ScheduleBench::new([row(1, "10"), row(2, "10")]);
    let began = bench.sequence();
    bench.read(row(3, "10"));
    let absent = bench.schedule.unseen_since(began);
    assert_eq!(absent, [id(1), id(2)], "row 3 was inserted after it began");
}

#[test]
fn a_bad_row_is_set_aside_with_its_reason_and_the_others_go_on() {
    let mut bench = ScheduleBench::new([row(1, "-5"), row(2, "1")]);
    assert_eq!(bench.fire_at(1.0), [1]);
    let look = bench.look(1);
    assert_eq!(look.status, Status::Invalid);
    assert!(
        look.reason
            .expect("a reason")
            .contains("visits_per_unit is -5")
    );
}

#[test]
fn a_row_that_is_not_anchored_yet_is_neither_paced_nor_set_aside() {
    let mut unseen = row(1, "1");
    (unseen.row.config_version, unseen.row.anchor_at) = (None, None);
    let mut no_progress = row(2, "1");
    no_progress.progress = None;
    let mut bench = ScheduleBench::new([unseen, no_progress]);
    assert_eq!(bench.plan_at(5.0), None);
    for n in [1, 2] {
        let look = bench.look(n);
        assert_eq!((look.status, look.reason), (Status::Scheduled, None));
    }
    bench.read(row(1, "1"));
    assert_eq!(bench.read(row(2, "1")), Applied::Changed);
    assert_eq!(bench.plan_at(5.0).expect("anchored").rows.len(), 2);
}

/// Ten a second for ten seconds, a hundred in all.
fn window() -> RowRead {
    let mut row = row(1, "10");
    row.row.total_visits = Some("100".into());
    row.row.end_time = Some(DbTime::from_micros(T0 + 10_000_000));
    row
}

#[test]
fn what_was_due_at_the_end_is_still_stored_after_it_and_dated_before_it() {
    let mut bench = ScheduleBench::new([window()]);
    assert_eq!(bench.fire_at(20.0), [21]);
    assert_eq!(bench.look(1).status, Status::Draining);
    let batch = bench.plan_at(21.0).expect("draining");
    assert!(
        batch.rows[0]
            .visit_times
            .iter()
            .all(|moment| *moment <= at(10.0))
    );
    bench.store(&batch);
    for second in 22..30 {
        bench.fire_at(f64::from(second));
    }
    assert_eq!(
        (bench.look(1).distributed, bench.look(1).status),
        (100, Status::Completed)
    );
    assert_eq!((bench.deadline(), bench.schedule.running()), (None, 0));
}

#[test]
fn what_is_still_owed_a_day_after_the_end_is_given_up_even_if_the_database_was_away_till_then() {
    let mut bench = ScheduleBench::new([window()]);
    let given_up = 10.0 + 86_400.0;
    assert!(bench.deadline().is_some());
    assert_eq!(bench.plan_at(given_up), None);
    assert_eq!(
        (bench.deadline(), bench.look(1).status),
        (None, Status::Ended)
    );
}

#[test]
fn a_backlog_waits_for_a_window_that_was_moved_away() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    bench.now = at(20.0);
    let mut moved = row(1, "10");
    moved.row.config_version = Some(2);
    moved.row.anchor_units = Some((200_i64 * 86_400_000_000).to_string().into());
    moved.row.anchor_at = Some(at(20.0));
    moved.row.start_time = Some(at(100.0));
    bench.read(moved);
    assert_eq!(
        (bench.deadline(), bench.look(1).status),
        (Some(100.0), Status::Scheduled)
    );
    assert_eq!(bench.fire_at(100.0), [21]);
}

#[test]
fn a_longer_time_to_catch_up_takes_a_row_up_again_that_was_given_up() {
    let mut bench = ScheduleBench::new([window()]);
    let control = |seconds: i64| Control {
        give_up_after_us: seconds * FIRE_PERIOD_US,
        ..Control::default()
    };
    bench.now = at(20.0);
    bench.schedule.set_control(control(5), bench.now);
    assert_eq!(
        (bench.deadline(), bench.look(1).status),
        (None, Status::Ended)
    );
    bench.schedule.set_control(control(60), bench.now);
    assert_eq!(bench.fire_at(20.0), [21]);
}

#[test]
fn a_total_that_was_lowered_below_what_is_distributed_is_completed() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    bench.fire_at(1.0);
    let mut lowered = bench.as_known(row(1, "10"));
    lowered.row.config_version = Some(2);
    lowered.row.total_visits = Some("5".into());
    bench.read(lowered);
    assert_eq!(
        (bench.deadline(), bench.look(1).status),
        (None, Status::Completed)
    );
}

#[test]
fn a_row_is_behind_by_the_rule_of_the_status_view() {
    for (tenths_a_second, done) in [
        (100, 59),
        (100, 58),
        (25, 14),
        (25, 13),
        (3, 0),
        (10, 4),
        (10, 3),
    ] {
        let mut bench = ScheduleBench::new([]);
        bench.now = at(10.0);
        let mut row = row(
            1,
            &format!("{}.{}", tenths_a_second / 10, tenths_a_second % 10),
        );
        row.progress = Some(Progress {
            distributed: done,
            ..Progress::default()
        });
        bench.read(row.clone());
        let curve = Distribution::parse(&row.row).expect("valid").curve;
        let by_the_view = (curve.due(at(7.0)) - done) * 10 > tenths_a_second + 10;
        let status = if by_the_view {
            Status::Behind
        } else {
            Status::Active
        };
        assert_eq!(
            bench.look(1).status,
            status,
            "{tenths_a_second} tenths, {done} done"
        );
    }
}

#[test]
fn few_rows_share_one_statement_and_many_are_spread_evenly_over_the_second() {
    let few = ScheduleBench::new((1..=50).map(|n| row(n, "1")));
    let instants: BTreeSet<DbTime> = few.schedule.queue.iter().map(|(wake, _)| *wake).collect();
    assert_eq!(instants.len(), 1);

    let mut many = ScheduleBench::new((1..=10_000).map(|n| row(n, "1")));
    many.fire_at(0.99);
    let mut rows_at: BTreeMap<DbTime, usize> = BTreeMap::new();
    let mut statements = 0;
    while let Some(next) = many.schedule.next_deadline().filter(|next| *next < at(2.0)) {
        many.now = next;
        let batch = many.schedule.plan(next, i64::MAX).expect("due");
        *rows_at.entry(next).or_default() += batch.rows.len();
        statements += 1;
        many.store(&batch);
    }
    assert_eq!(
        (rows_at.len(), statements),
        (50, 50),
        "one statement every 20 ms"
    );
    assert!(
        rows_at.values().all(|rows| (130..=280).contains(rows)),
        "{rows_at:?}"
    );
    assert_eq!(rows_at.values().sum::<usize>(), 10_000, "each row once");
}

#[test]
fn a_database_clock_that_steps_back_does_not_put_a_waiting_row_off_for_as_long() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    bench.fire_at(3_600.0);
    assert_eq!(bench.deadline(), Some(3_601.0), "its bucket is empty");
    bench.now = at(1_800.0);
    bench.schedule.clock_stepped(bench.now);
    assert_eq!(bench.deadline(), Some(1_800.0));
}

#[test]
fn a_database_clock_that_steps_forward_is_a_backlog() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    bench.fire_at(1.0);
    bench.now = at(500.0);
    bench.schedule.clock_stepped(bench.now);
    assert_eq!(bench.fire_at(500.0), [21]);
}

#[test]
fn what_came_to_nothing_for_the_databases_own_reasons_is_tried_again_as_it_was() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    bench.schedule.not_now(&batch, bench.now);
    assert_eq!(bench.plan_at(1.0), Some(batch));
}

#[test]
fn a_batch_moves_the_bucket_with_the_count() {
    let mut bench = ScheduleBench::new([row(1, "10")]);
    let batch = bench.plan_at(1.0).expect("due");
    assert_eq!(batch.rows[0].before.bucket, Bucket::default());
    assert_eq!(batch.rows[0].after.bucket.at_column(), Some(at(1.0)));
}
