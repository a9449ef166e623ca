//! Several agents over one table: which rows each stores, and what its heartbeat says.

use super::bench::{AgentBench, ME, id, row};
use super::*;
use crate::domain::ownership::{Ownership, PeerAgent};
use crate::domain::schedule::RowRead;

const OTHER: PeerAgent = PeerAgent {
    id: Uuid::from_u128(8),
    serving: true,
};

fn twenty_rows() -> Vec<RowRead> {
    (0..20).map(|n| row(n, 10)).collect()
}

fn theirs() -> BTreeSet<Uuid> {
    let ownership = Ownership::beside(ME, true, &[OTHER]);
    (0..20)
        .map(id)
        .filter(|row| !ownership.owns(*row))
        .collect()
}

#[test]
fn an_agent_that_joins_owns_its_rows_from_the_next_heartbeat_on() {
    let mut bench = AgentBench::live(&twenty_rows());
    bench.peers = vec![OTHER];
    bench.store_until(2.0);
    let stored: BTreeSet<Uuid> = bench.store_until(4.0).into_iter().collect();
    assert!(!theirs().is_empty());
    assert_eq!(stored.len(), 20 - theirs().len());
    assert!(stored.is_disjoint(&theirs()));
    assert_eq!(bench.agent.rows_owned(), stored.len());
    assert_eq!(
        bench.agent.rows(),
        20,
        "it also knows rows that it does not own"
    );
}

#[test]
fn rows_of_an_agent_that_left_are_stored_only_after_they_were_read_again() {
    let mut bench = AgentBench::live(&twenty_rows());
    bench.peers = vec![OTHER];
    bench.store_until(2.0);
    bench.peers.clear();
    let stored: BTreeSet<Uuid> = bench.store_until(4.0).into_iter().collect();
    assert!(
        stored.is_disjoint(&theirs()),
        "what the other agent stored is unknown"
    );

    let Some(ReadRequest::Rows(read)) = bench.take_read() else {
        panic!("they are read at once");
    };
    assert_eq!(read.into_iter().collect::<BTreeSet<_>>(), theirs());
    let truth = twenty_rows()
        .into_iter()
        .filter(|row| theirs().contains(&row.row.id));
    bench.answer_read(truth.collect());
    let stored: BTreeSet<Uuid> = bench.store_until(5.1).into_iter().collect();
    assert_eq!(stored.len(), 20);
}

#[test]
fn an_agent_serves_once_it_has_read_the_table_and_until_a_batch_is_not_answered_or_lost() {
    let mut bench = AgentBench::new();
    bench.answer_heartbeats();
    assert_eq!(bench.serving, Some(false), "it knows no row yet");
    bench.answer_read(vec![row(1, 10)]);
    bench.keep_until(0.01);
    assert_eq!(bench.serving, Some(true), "with a heartbeat at once");

    bench.keep_until(3.0);
    assert!(bench.take_batch().is_some(), "sent after the first second");
    assert_eq!(bench.serving, Some(true), "a moment is nothing");
    bench.keep_until(5.0);
    assert_eq!(bench.serving, Some(false), "no answer for long");
    bench.stored([id(1)]);
    bench.keep_until(6.0);
    assert_eq!(bench.serving, Some(true));

    assert!(bench.take_batch().is_some());
    bench.fail_batch(Failure::new(ErrorKind::Lost, "reset"));
    bench.keep_until(7.0);
    assert_eq!(bench.serving, Some(false), "its writer has no connection");
}

#[test]
fn only_the_agents_own_rows_are_written_back() {
    let mut bench = AgentBench::live(&twenty_rows());
    bench.peers = vec![OTHER];
    bench.store_until(2.0);
    assert!(bench.events().contains(&Event::AGENTS_CHANGED.count(2)));
    bench.written.clear();
    bench.store_until(30.0);
    assert!(!bench.written.is_empty());
    assert!(bench.written.iter().all(|row| !theirs().contains(row)));
}
