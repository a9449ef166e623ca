//! Failures of the database: which row causes them, and that the others continue.

use super::bench::{ALL_PUBLISHED, AgentBench, id, row};
use super::*;

#[test]
fn a_row_whose_reconciliation_is_refused_is_found_by_halving_and_the_others_are_compared() {
    let mut bench = AgentBench::new();
    bench.answer_read((1..=4).map(|n| row(n, 0)).collect());
    bench.answer_heartbeats();
    assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
    bench.done(TaskOutcome::Publication(ALL_PUBLISHED));
    let (bad, mut compared, mut refused) = (id(3), BTreeSet::new(), 0);
    while let Some(MaintenanceTask::Reconcile(ids)) = bench.take_task() {
        if ids.contains(&bad) {
            refused += 1;
            let failure = Failure::new(ErrorKind::Data, "the ledger is closed");
            bench.fail_task(failure);
        } else {
            compared.extend(ids);
            bench.done(TaskOutcome::Reconciled(Vec::new()));
        }
        assert!(refused < 5, "four rows are halved twice");
    }
    assert_eq!((compared, refused), (BTreeSet::from([1, 2, 4].map(id)), 3));
    let told = bench.events();
    let defer =
        |event: &&Event| event.is(&Event::TASK_DEFERRED) && event.distribution_id == Some(bad);
    assert_eq!(told.iter().filter(defer).count(), 1, "{told:?}");
    assert_eq!(bench.agent.health().database_away_since, None);
}

#[test]
fn a_batch_that_takes_too_long_is_halved_and_none_of_its_rows_is_to_blame() {
    let mut bench = AgentBench::live(&[row(1, 10), row(2, 10)]);
    bench.now = AgentBench::at(3.0);
    bench.input(Input::Tick);
    let batch = bench.take_batch().expect("both are due");
    assert_eq!(batch.rows.len(), 2);
    let slow = Failure::new(
        ErrorKind::Timeout,
        "canceling statement due to statement timeout",
    );
    bench.fail_batch(slow);
    bench.now = AgentBench::at(4.0);
    bench.input(Input::Tick);
    assert_eq!(bench.take_batch().expect("tried again").rows.len(), 1);
    let told = bench.events();
    assert!(!told.iter().any(|event| event.is(&Event::QUARANTINED)));
    assert!(told.iter().any(|event| event.is(&Event::STATEMENT_FAILED)));
    assert_eq!(bench.agent.health().database_away_since, None);
}

#[test]
fn a_schema_that_fits_no_row_blames_none_and_counts_as_an_unavailable_database() {
    let mut bench = AgentBench::live(&[row(1, 10), row(2, 10)]);
    bench.events();
    for second in 1..200 {
        bench.pass_to(f64::from(second));
        if bench.take_batch().is_some() {
            let missing = Failure::new(ErrorKind::Schema, "no such table");
            bench.fail_batch(missing);
        }
    }
    let told = bench.events();
    assert!(!told.iter().any(|event| event.is(&Event::QUARANTINED)));
    let away = |event: &&Event| event.is(&Event::DATABASE_UNAVAILABLE);
    assert_eq!(told.iter().filter(away).count(), 1, "{told:?}");
}

#[test]
fn an_unavailable_database_is_reported_once_for_each_kind_of_error() {
    let mut bench = AgentBench::live(&[row(1, 10)]);
    bench.events();
    let error_kinds = [ErrorKind::ShuttingDown, ErrorKind::ReadOnly];
    for second in 1..60 {
        bench.pass_to(f64::from(second));
        if bench.take_batch().is_some() {
            let kind = error_kinds[usize::from(second > 20)];
            let failure = Failure::new(kind, "as it says");
            bench.batch_unsent(failure);
        }
    }
    let told = bench.events();
    let away: Vec<ErrorKind> = told
        .iter()
        .filter(|event| event.is(&Event::DATABASE_UNAVAILABLE))
        .filter_map(|event| Some(event.failure.as_ref()?.kind))
        .collect();
    assert_eq!(away, error_kinds);
}
