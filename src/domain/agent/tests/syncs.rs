//! Syncs: incremental where that finds all changes, else full.

use super::bench::{AgentBench, edited, id, row};
use super::*;
use crate::domain::limits::SYNC_FULL_EVERY;
use crate::domain::schedule::RowRead;

/// An agent whose last sync has this watermark.
fn synced_at(watermark: u64) -> AgentBench {
    let mut bench = AgentBench::live(&[row(1, 0), row(2, 0)]);
    bench.pass_to(30.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::All),
        "no sync had a watermark"
    );
    bench.answer_read_at(vec![row(1, 0), row(2, 0)], Some(watermark));
    bench
}

#[test]
fn a_periodic_sync_reads_what_has_changed_since_the_last_one() {
    let mut bench = synced_at(100);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    bench.answer_read_at(vec![edited(row(1, 0))], Some(120));
    assert_eq!(
        bench.agent.rows(),
        2,
        "a row that was not read is still there"
    );
    assert_eq!(bench.agent.counters().reads.repaired, 1);
    bench.pass_to(90.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(120)))
    );
}

#[test]
fn every_row_is_read_again_every_ten_minutes() {
    let mut bench = synced_at(100);
    let full_at = 30 + SYNC_FULL_EVERY.as_secs();
    for second in (60..full_at).step_by(30) {
        bench.pass_to(f64::from(u32::try_from(second).unwrap()));
        assert_eq!(
            bench.take_read(),
            Some(ReadRequest::Since(XidWatermark(100)))
        );
        bench.answer_read_at(Vec::new(), Some(100));
    }
    bench.pass_to(f64::from(u32::try_from(full_at).unwrap()));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read_at(vec![row(1, 0)], Some(100));
    assert_eq!(bench.agent.rows(), 1, "a deletion without an event");
}

#[test]
fn a_row_that_is_found_deleted_is_forgotten_and_a_truncated_table_is_read_in_full() {
    let mut bench = synced_at(100);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    let found = ReadResult {
        deletions: [id(2)].into(),
        watermark: Some(XidWatermark(110)),
        ..ReadResult::default()
    };
    bench.answer_found(found);
    assert_eq!(bench.agent.rows(), 1);
    bench.pass_to(90.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(110)))
    );
    let found = ReadResult {
        truncated: true,
        watermark: Some(XidWatermark(120)),
        ..ReadResult::default()
    };
    bench.answer_found(found);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
}

#[test]
fn every_row_is_read_when_changes_may_have_been_missed() {
    let mut bench = synced_at(100);
    bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.answer_read_at(vec![row(1, 0), row(2, 0)], Some(101));
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
}

#[test]
fn every_row_is_read_after_a_sync_that_failed() {
    let mut bench = synced_at(100);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    bench.fail_read(Failure::new(ErrorKind::Lost, "cut"));
    bench.pass_to(75.0);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
}

#[test]
fn every_row_is_read_after_a_database_that_is_behind_the_one_before() {
    let mut bench = synced_at(100);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    bench.answer_read_at(Vec::new(), Some(90));
    bench.pass_to(90.0);
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
}

#[test]
fn a_row_of_an_event_is_read_by_id_beside_an_incremental_sync() {
    let mut bench = synced_at(100);
    bench.pass_to(59.995);
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(2),
        None,
    )));
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    bench.answer_read_at(Vec::new(), Some(101));
    bench.pass_to(60.1);
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(2)])));
    bench.answer_read(Vec::new());
    assert_eq!(bench.agent.rows(), 1, "it was deleted");
}

#[test]
fn a_large_table_is_read_in_parts_and_rows_edited_meanwhile_are_read_between_them_and_kept() {
    let mut bench = synced_at(100);
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    let part = |rows: Vec<RowRead>, last: Option<u128>| ReadResult {
        rows,
        more_after: last.map(id),
        watermark: Some(XidWatermark(110)),
        ..ReadResult::default()
    };
    bench.input(Input::Realtime(RealtimeEvent::Row(
        Transport::Changes,
        id(3),
        None,
    )));
    bench.pass_to(30.1);
    bench.answer_found(part(vec![row(1, 0)], Some(1)));
    assert_eq!(bench.take_read(), Some(ReadRequest::Rows(vec![id(3)])));
    bench.answer_read_at(vec![edited(row(3, 0))], None);
    assert_eq!(bench.take_read(), Some(ReadRequest::After(id(1))));
    bench.answer_found(part(vec![row(3, 0)], None));
    let version = bench.agent.schedule.version(id(3));
    assert_eq!(
        version,
        edited(row(3, 0)).row.config_version,
        "the sync is older than the edit"
    );
    assert_eq!(bench.agent.rows(), 2, "row 2 was in no part");
}

#[test]
fn a_sync_that_finds_more_than_one_read_returns_reads_every_row() {
    let mut bench = synced_at(100);
    bench.pass_to(60.0);
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(100)))
    );
    bench.answer_found(ReadResult {
        rows: vec![edited(row(1, 0))],
        more_after: Some(id(1)),
        watermark: Some(XidWatermark(120)),
        ..ReadResult::default()
    });
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
}

#[test]
fn a_sync_that_is_requested_during_a_full_sync_continues_from_there() {
    let mut bench = synced_at(100);
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    assert_eq!(bench.take_read(), Some(ReadRequest::All));
    bench.input(Input::Realtime(RealtimeEvent::Unclear));
    bench.answer_read_at(vec![row(1, 0), row(2, 0)], Some(110));
    assert_eq!(
        bench.take_read(),
        Some(ReadRequest::Since(XidWatermark(110)))
    );
}
