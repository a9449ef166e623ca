//! Each guard of the protocol removed: the exploration must find the violation that it prevents.

use super::actor::Gate::{Holding, Inserting, Locked, Locking};
use super::actor::{Script, Step};
use super::explore::explore;
use super::scene::{Mutant, Scene};
use super::{ADOPT, EDITS, ORGANIC, PURGE};
use crate::oracle::step::Wrong;

const NO_COMPARE_AND_SET: (&str, &str) = (
    "and p.last_number = locked.last_number and p.distributed = locked.distributed
       and p.bucket_at is not distinct from locked.bucket_at_before",
    "",
);

/// The exploration of these scripts finds that violation in the mutant.
async fn found(mutant: Mutant, scripts: &[Script], kind: Wrong) {
    let mut scene = Scene::new(Some(&mutant)).await;
    let report = explore(&mut scene, scripts, Some(kind)).await;
    let violation = report.found.get(&kind);
    println!(
        "found in interleaving {}, step {}: {}",
        report.interleavings,
        report.steps,
        violation.map_or("", String::as_str)
    );
    assert!(violation.is_some(), "expected {kind:?}, found {report:?}");
}

fn store(edits: &'static [(&'static str, &'static str)]) -> Mutant {
    Mutant {
        function: "visit_pacer_store",
        edits,
        beside: "",
    }
}

fn agent_and_edit(edit: usize) -> [Script; 2] {
    let agent = Script::agent("agent", &[Locking, Locked, Inserting]);
    [agent, Script::editor(EDITS[edit])]
}

fn two_agents() -> [Script; 2] {
    ["agent A", "agent B"].map(|name| Script::agent(name, &[Locking, Inserting]))
}

#[tokio::test]
async fn without_the_version_check_a_batch_of_an_old_version_is_found() {
    let mutant = store(&[("and v.config_version = batch.version", "")]);
    found(mutant, &agent_and_edit(3), Wrong::OldVersion).await;
}

#[tokio::test]
async fn without_the_version_check_visits_beyond_a_lowered_total_are_found() {
    let mutant = store(&[
        ("and v.config_version = batch.version", ""),
        (
            "and p.distributed + locked.visits <= locked.total_visits",
            "",
        ),
    ]);
    let [agent, editor] = agent_and_edit(2);
    let agent = agent.then(Step::Read).then(Step::Store);
    found(mutant, &[agent, editor], Wrong::AheadOfCurve).await;
}

#[tokio::test]
async fn without_compare_and_set_the_unique_index_refuses_a_whole_batch() {
    let mutant = store(&[NO_COMPARE_AND_SET]);
    found(mutant, &two_agents(), Wrong::Failed).await;
}

#[tokio::test]
async fn without_compare_and_set_and_unique_index_a_number_given_twice_is_found() {
    let mutant = Mutant {
        beside: "do $$ declare name regclass; begin
            select indexrelid into strict name from pg_index where indrelid = 'store_visits'::regclass and indisunique and not indisprimary;
            execute format('drop index %s', name); end $$;
          alter table store_visits drop constraint store_visits_pkey",
        ..store(&[NO_COMPARE_AND_SET])
    };
    found(mutant, &two_agents(), Wrong::Numbers).await;
}

#[tokio::test]
async fn without_the_lock_visits_after_a_pause_are_found() {
    let mutant = store(&[("for no key update of v skip locked", "")]);
    found(mutant, &agent_and_edit(0), Wrong::DuringPause).await;
}

#[tokio::test]
async fn with_a_lock_taken_after_the_check_visits_after_a_pause_are_found() {
    let mutant = store(&[
        ("locked as materialized (", "checked as materialized ("),
        (
            "for no key update of v skip locked
  )",
            "), held as materialized (
    select v.id from public.visit_distribution v where v.id in (select checked.distribution_id from checked) for no key update skip locked
  ), locked as materialized (
    select checked.* from checked where checked.distribution_id in (select held.id from held)
  )",
        ),
    ]);
    found(mutant, &agent_and_edit(0), Wrong::DuringPause).await;
}

#[tokio::test]
async fn without_skip_locked_an_agent_that_waits_for_an_editor_is_found() {
    let mutant = store(&[("of v skip locked", "of v")]);
    found(mutant, &agent_and_edit(0), Wrong::Waited).await;
}

#[tokio::test]
async fn without_skip_locked_on_partners_an_agent_that_waits_for_a_partner_is_found() {
    let mutant = Mutant {
        function: "visit_pacer_lock_partners",
        edits: &[("for key share skip locked", "for key share")],
        beside: "",
    };
    found(mutant, &agent_and_edit(8), Wrong::Waited).await;
}

#[tokio::test]
async fn without_the_lock_on_partners_a_foreign_key_that_waits_for_a_partner_is_found() {
    let mutant = Mutant {
        function: "visit_pacer_lock_partners",
        edits: &[("for key share skip locked", "")],
        beside: "",
    };
    found(mutant, &agent_and_edit(8), Wrong::Waited).await;
}

#[tokio::test]
async fn without_the_lock_on_the_control_row_visits_after_a_pause_of_all_are_found() {
    let mutant = Mutant {
        function: "visit_pacer_may_store",
        edits: &[("for share skip locked", "")],
        beside: "",
    };
    found(mutant, &agent_and_edit(9), Wrong::DuringPause).await;
}

#[tokio::test]
async fn without_a_shared_bucket_a_burst_is_found() {
    let mutant = store(&[(
        "bucket_units = locked.bucket_units::numeric, bucket_at = locked.bucket_at,",
        "",
    )]);
    let agent = Script::agent("agent A", &[])
        .then(Step::Read)
        .then(Step::Store);
    let other = Script::agent("agent B", &[]);
    found(mutant, &[agent, other], Wrong::BeyondBucket).await;
}

#[tokio::test]
async fn with_rows_locked_in_another_order_a_deadlock_is_found() {
    let mutant = Mutant {
        function: "adopt_existing_visits",
        edits: &[(
            "array_agg(v.id order by v.id)",
            "array_agg(v.id order by v.id desc)",
        )],
        beside: "",
    };
    let agent = Script::agent("agent", &[]);
    let purge = Script::maintenance("purge", PURGE, &[Holding]);
    let adopt = Script::maintenance("adopt", ORGANIC, &[Holding])
        .then(Step::Sql(ADOPT))
        .manual();
    found(mutant, &[agent, purge, adopt], Wrong::Deadlock).await;
}
