//! The write protocol: all interleavings of a few agents, editors and SQL functions, with the real statements over real
//! connections, also with a statement suspended in the middle while another commits.
//!
//! `actor` has the scripts, `explore` runs the interleavings, `oracle::step` judges each step from the database alone, `scene` is
//! the database. `mutants` removes each guard of the protocol; the same exploration must then find a violation.

mod actor;
mod explore;
mod mutants;
mod scene;

use self::actor::Gate::{Advancing, Holding, Inserting, Locked, Locking, Stored};
use self::actor::{Gate, Script, Step};
use self::explore::{Report, explore};
use self::scene::Scene;
use crate::harness::long;

/// What an editor may do: each in one transaction, which may stay open for a while.
const EDITS: [&[&str]; 12] = [
    &[PAUSE, "commit"],
    &[PAUSE, "rollback"],
    &[
        "begin; update visit_distribution set total_visits = 1 where id = one()",
        "commit",
    ],
    &[
        "begin; update visit_distribution set visits_per_unit = 5 where id = one()",
        "commit",
    ],
    &[
        "begin; update visit_distribution set end_time = clock_timestamp() - interval '1 minute' where id = one()",
        "commit",
    ],
    &[
        "begin; update visit_distribution set partner_id = another_partner() where id = one()",
        "commit",
    ],
    &["begin; delete from visit_distribution where id = one()", "commit"],
    &[
        "begin; select from visit_distribution where id = one() for update",
        "commit",
    ],
    &["begin; select from partners for update", "commit"],
    &[STOP, "commit"],
    &[STOP, "rollback"],
    &[
        "begin; delete from visit_distribution where id = one()",
        "insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time)
         values (one(), partner(), 6, 'hour', 10, now() - interval '18 minutes'); commit",
    ],
];
const PAUSE: &str = "begin; update visit_distribution set is_active = false where id = one()";
const RESUME: &str = "update visit_distribution set is_active = true where id = one()";
const STOP: &str = "begin; update visit_pacer_control set paused = true";
const DISTRIBUTE: &str = "select from distribute_visits()";
const MANUAL: &str = "select from distribute_visits_for_partner(partner(), 2)";
const SYNC: &str = "select from sync_distribution_counts()";
const PURGE: &str = "select from purge_old_visits(interval '0')";
const ADOPT: &str = "select from adopt_existing_visits(partner())";
const ORGANIC: &str =
    "insert into store_visits (partner_id, visited_at) values (partner(), clock_timestamp())";

/// The gates of a store: a few, or all in the long form.
fn gates(few: &[Gate]) -> Vec<Gate> {
    if long() {
        vec![Locking, Locked, Advancing, Inserting, Stored, Holding]
    } else {
        few.to_vec()
    }
}

/// Explores each of these sets. Fails with the first interleaving of each kind of violation.
async fn holds(name: &str, sets: Vec<Vec<Script>>) {
    let mut all = Report::default();
    let mut scene = Scene::new(None).await;
    for scripts in sets {
        let report = explore(&mut scene, &scripts, None).await;
        all.interleavings += report.interleavings;
        all.steps += report.steps;
        all.waits += report.waits;
        all.found.extend(report.found);
    }
    println!(
        "{name}: {} interleavings, {} steps, {} of them with a session waiting for a lock",
        all.interleavings, all.steps, all.waits
    );
    let found: Vec<&str> = all.found.values().map(String::as_str).collect();
    assert!(found.is_empty(), "{name}: {}", found.join("\n"));
}

#[tokio::test]
async fn an_edit_that_commits_at_any_point_of_a_store_is_a_barrier_and_waits_for_no_agent_between_statements()
 {
    let held = gates(&[Locking, Locked, Inserting]);
    let sets = EDITS.map(|edit| vec![Script::agent("agent", &held), Script::editor(edit)]);
    holds("an agent and an editor", sets.to_vec()).await;
}

#[tokio::test]
async fn two_agents_that_computed_the_same_batch_store_it_once() {
    let held = gates(&[Locking, Inserting]);
    let twice = Script::agent("agent A", &held).then(Step::Store);
    let mut sets = vec![vec![twice, Script::agent("agent B", &held)]];
    if long() {
        let names = ["agent A", "agent B", "agent C"];
        sets.push(names.map(|name| Script::agent(name, &[Inserting])).to_vec());
    }
    holds("agents, one of which lost an answer", sets).await;
}

#[tokio::test]
async fn with_two_agents_an_edit_is_a_barrier_too() {
    let held = gates(&[Inserting]);
    let sets = [EDITS[0], EDITS[2], EDITS[9]].map(|edit| {
        vec![
            Script::agent("agent A", &held),
            Script::agent("agent B", &[]),
            Script::editor(edit),
        ]
    });
    holds("two agents and an editor", sets.to_vec()).await;
}

#[tokio::test]
async fn after_a_pause_and_a_resume_no_batch_from_before_the_pause_is_stored() {
    let sets = vec![vec![
        Script::agent("agent", &gates(&[Locking, Inserting])).then(Step::WriteBack),
        Script::editor(&[PAUSE, "commit", RESUME]),
    ]];
    holds("a pause and a resume", sets).await;
}

#[tokio::test]
async fn distribute_visits_stores_beside_agents_and_editors_like_an_agent() {
    let held = gates(&[Inserting]);
    let function = Script::pacing(DISTRIBUTE, &gates(&[Locking, Inserting]));
    let sets = vec![
        vec![function.clone(), Script::agent("agent", &held)],
        vec![function.clone(), Script::editor(EDITS[0])],
        vec![function.clone(), Script::editor(EDITS[2])],
        vec![function.clone(), Script::editor(EDITS[9])],
        vec![function.clone(), function],
    ];
    holds("distribute_visits()", sets).await;
}

#[tokio::test]
async fn a_manual_distribution_numbers_its_visits_beside_an_agent() {
    let function = Script::pacing(MANUAL, &gates(&[Locking, Inserting])).manual();
    let sets = vec![
        vec![
            function.clone(),
            Script::agent("agent", &gates(&[Inserting])),
        ],
        vec![function, Script::editor(EDITS[0])],
    ];
    holds("distribute_visits_for_partner()", sets).await;
}

#[tokio::test]
async fn sync_purge_and_adoption_agree_with_an_agent_that_stores() {
    let agent = Script::agent("agent", &gates(&[Inserting]));
    let storing = agent.clone().then(Step::Read).then(Step::Store);
    let purger = Script::maintenance("purge", PURGE, &[Holding, Advancing]);
    let adopter = Script::maintenance("adopt", ORGANIC, &[Holding, Advancing])
        .then(Step::Sql(ADOPT))
        .manual();
    let sets = vec![
        vec![storing.clone(), Script::pacing(SYNC, &[])],
        vec![storing, purger.clone()],
        vec![agent.clone(), adopter.clone()],
        vec![agent, purger.clone(), Script::editor(EDITS[0])],
        vec![adopter, purger],
    ];
    holds("sync, purge and adopt", sets).await;
}
