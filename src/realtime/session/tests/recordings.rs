//! Recordings of what a real server sent (Realtime v2.129.8), with our topic in place of theirs.

use super::*;

/// Plays what a server sent, and returns what the session told.
fn replay(lines: &str) -> Vec<FeedEvent> {
    let mut bench = Bench::opened();
    for line in lines.lines() {
        bench.receive(&line.replace("TOPIC", TOPIC));
    }
    bench.events()
}

fn kinds(events: &[FeedEvent]) -> Vec<&'static str> {
    events
        .iter()
        .map(|event| match event {
            FeedEvent::Live(_) => "live",
            FeedEvent::Down(_) => "down",
            FeedEvent::Changed(_) => "changed",
            FeedEvent::Lost(_) => "lost",
            FeedEvent::Broadcast(..) => "broadcast",
        })
        .collect()
}

#[test]
fn a_recorded_life_in_version_2_with_a_refreshed_token_is_understood() {
    let events = replay(include_str!("recordings/version_2.jsonl"));
    assert_eq!(
        kinds(&events),
        ["live", "changed", "live", "changed", "down"]
    );
}

#[test]
fn a_recorded_insert_update_and_delete_in_version_1_are_understood() {
    let events = replay(include_str!("recordings/version_1.jsonl"));
    assert_eq!(kinds(&events), ["live", "changed", "changed", "changed"]);
    let changes: Vec<(ChangeKind, Option<String>)> = events
        .into_iter()
        .filter_map(|event| match event {
            FeedEvent::Changed(change) => Some((change.kind, change.id.map(|id| id.to_string()))),
            FeedEvent::Live(_)
            | FeedEvent::Broadcast(..)
            | FeedEvent::Down(_)
            | FeedEvent::Lost(_) => None,
        })
        .collect();
    assert_eq!(
        changes,
        [
            (ChangeKind::Insert, Some(ROW.to_owned())),
            (ChangeKind::Update, Some(ROW.to_owned())),
            (
                ChangeKind::Delete,
                Some("11111111-1111-1111-1111-111111111112".to_owned())
            ),
        ]
    );
}

#[test]
fn a_recorded_expiry_and_its_close_are_one_end() {
    let events = replay(include_str!("recordings/expiry.jsonl"));
    assert_eq!(kinds(&events), ["live", "down"]);
    assert!(matches!(
        events.last(),
        Some(FeedEvent::Down(Down {
            way: Way::Changes,
            class: Trouble::Key,
            ..
        }))
    ));
}

#[test]
fn a_recorded_loss_of_the_publication_is_told_as_a_matter_of_the_table() {
    let events = replay(include_str!("recordings/unpublished.jsonl"));
    assert_eq!(kinds(&events), ["live", "down"]);
    assert!(matches!(
        events.last(),
        Some(FeedEvent::Down(Down {
            way: Way::Changes,
            class: Trouble::Table,
            ..
        }))
    ));
}
