//! Faults of the database: who is to blame, and that the others go on.

use super::bench::{ALL_PUBLISHED, Bench, id, row};
use super::*;

#[test]
fn a_row_whose_reconciliation_is_refused_is_found_by_halving_and_the_others_are_compared() {
    let mut bench = Bench::new();
    bench.answer_read((1..=4).map(|n| row(n, 0)).collect());
    bench.answer_beats();
    assert_eq!(bench.take_chore(), Some(MaintenanceTask::Published));
    bench.kept(TaskOutcome::Published(ALL_PUBLISHED));
    let (bad, mut compared, mut refused) = (id(3), BTreeSet::new(), 0);
    while let Some(MaintenanceTask::Reconcile(ids)) = bench.take_chore() {
        if ids.contains(&bad) {
            refused += 1;
            let failure = Failure::new(ErrorKind::Data, "the ledger is closed");
            bench.input(Input::TaskOutcome(Err(failure)));
        } else {
            compared.extend(ids);
            bench.kept(TaskOutcome::Reconciled(Vec::new()));
        }
        assert!(refused < 5, "four rows are halved twice");
    }
    assert_eq!((compared, refused), (BTreeSet::from([1, 2, 4].map(id)), 3));
    let told = bench.notices();
    let defer = |notice: &&Notice| matches!(notice, Notice::Deferred(row, _) if *row == bad);
    assert_eq!(told.iter().filter(defer).count(), 1, "{told:?}");
    assert_eq!(bench.agent.health().database_away_since, None);
}

#[test]
fn a_batch_that_takes_too_long_is_halved_and_none_of_its_rows_is_to_blame() {
    let mut bench = Bench::live(&[row(1, 10), row(2, 10)]);
    bench.now = Bench::at(3.0);
    bench.input(Input::Tick);
    let batch = bench.take_batch().expect("both are due");
    assert_eq!(batch.rows.len(), 2);
    let slow = Failure::new(
        ErrorKind::Timeout,
        "canceling statement due to statement timeout",
    );
    bench.input(Input::Stored(Stored::Failed(slow), None));
    bench.now = Bench::at(4.0);
    bench.input(Input::Tick);
    assert_eq!(bench.take_batch().expect("tried again").rows.len(), 1);
    let told = bench.notices();
    assert!(
        !told
            .iter()
            .any(|notice| matches!(notice, Notice::Quarantined(..)))
    );
    assert!(
        told.iter()
            .any(|notice| matches!(notice, Notice::Hindered(_)))
    );
    assert_eq!(bench.agent.health().database_away_since, None);
}

#[test]
fn a_schema_that_fits_no_row_blames_none_and_counts_as_the_database_being_away() {
    let mut bench = Bench::live(&[row(1, 10), row(2, 10)]);
    bench.notices();
    for second in 1..200 {
        bench.pass_to(f64::from(second));
        if bench.take_batch().is_some() {
            let missing = Failure::new(ErrorKind::Schema, "no such table");
            bench.input(Input::Stored(Stored::Failed(missing), None));
        }
    }
    let told = bench.notices();
    assert!(
        !told
            .iter()
            .any(|notice| matches!(notice, Notice::Quarantined(..)))
    );
    let away = |notice: &&Notice| matches!(notice, Notice::DatabaseAway(_));
    assert_eq!(told.iter().filter(away).count(), 1, "{told:?}");
}

#[test]
fn what_keeps_the_database_away_is_told_once_for_each_trouble() {
    let mut bench = Bench::live(&[row(1, 10)]);
    bench.notices();
    let error_kinds = [ErrorKind::ShuttingDown, ErrorKind::ReadOnly];
    for second in 1..60 {
        bench.pass_to(f64::from(second));
        if bench.take_batch().is_some() {
            let kind = error_kinds[usize::from(second > 20)];
            let failure = Failure::new(kind, "as it says");
            bench.input(Input::Stored(Stored::Unsent(failure), None));
        }
    }
    let told = bench.notices();
    let away: Vec<ErrorKind> = told
        .iter()
        .filter_map(|notice| match notice {
            Notice::DatabaseAway(failure) => Some(failure.kind),
            _ => None,
        })
        .collect();
    assert_eq!(away, error_kinds);
}
