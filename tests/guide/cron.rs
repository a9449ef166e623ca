//! Without an agent, or in reserve behind one: the guide's jobs, set up and taken down in a real `pg_cron`.
//!
//! `pg_cron` has to be loaded at the server's start, so one test has a server of its own; the others run the job's command.

use std::time::Duration;

use visit_pacer::demo::server::{PostgresOptions, PostgresServer};

use super::{Database, said};
use crate::harness::server::{self, Scratch};
use crate::harness::{Place, wait_until};

const SET_UP: &str = include_str!("../../deploy/supabase/cron.sql");
const TAKE_DOWN: &str = include_str!("../../deploy/supabase/cron_remove.sql");

/// The guide's own two.
const CHECK_JOBS: &str = "SELECT jobname, schedule, active FROM cron.job ORDER BY jobid;";
const ALL_JOBS: &str = "SELECT * FROM cron.job;";

/// The extension knows whole minutes only, and a busy machine may let one pass.
const A_RUN: Duration = Duration::from_secs(150);

/// The command of the job that distributes, as `cron.sql` has it.
fn command() -> String {
    let (_, job) = SET_UP
        .split_once("'visit-pacer: distribute', '* * * * *',")
        .expect("the job is there");
    let (_, command) = job.split_once('\'').expect("a literal");
    let (command, _) = command.split_once('\'').expect("its end");
    command.to_owned()
}

async fn server_with_cron(folder: &Scratch) -> PostgresServer {
    let mut any = Database::empty().await;
    let there: bool = any
        .ask("select exists (select from pg_available_extensions where name = 'pg_cron')")
        .await;
    assert!(
        there,
        "pg_cron is not installed beside this PostgreSQL; install it, on Debian 12: apt-get install postgresql-15-cron"
    );
    let settings = [
        ("shared_preload_libraries", "pg_cron"),
        ("cron.database_name", "guide"),
        ("cron.use_background_workers", "on"),
        ("cron.timezone", "UTC"),
    ];
    PostgresServer::start(PostgresOptions {
        data_dir: folder.path().join("postgres"),
        port: 0,
        durable: false,
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    })
    .await
    .expect("a PostgreSQL server with pg_cron starts")
}

#[tokio::test]
async fn the_jobs_are_set_up_once_run_by_themselves_and_are_taken_down() {
    let folder = Scratch::new();
    let server = server_with_cron(&folder).await;
    let url = server::prepared(&server, "guide").await;
    let mut db = Database::at(url).await;
    let partner = db.partner().await;
    db.insert(partner, 100_000, "1 a second", "-100 seconds", "1 hour")
        .await;

    for _ in 0..2 {
        db.run(SET_UP).await;
    }
    assert_eq!(
        db.said(CHECK_JOBS).await,
        [
            "visit-pacer: distribute|* * * * *|t",
            "visit-pacer: sync|*/5 * * * *|t"
        ]
    );
    assert_eq!(db.said(ALL_JOBS).await.len(), 2);
    db.run("select cron.schedule('mine', '0 3 * * *', 'select 1')")
        .await;

    let ran = "select exists (select from cron.job_run_details where command like '%distribute_visits%' and status = 'succeeded')";
    wait_until("a run of the job", A_RUN, async || db.ask(ran).await).await;
    let (stored, due): (i64, i64) = db
        .rows("select (select count(*) from store_visits), visit_distribution_due(id) from visit_distribution")
        .await[0];
    assert!(stored >= 100 && stored <= due, "{stored} of {due}");
    let failed = "select return_message from cron.job_run_details where status = 'failed'";
    assert_eq!(db.said(failed).await, [""; 0]);

    for _ in 0..2 {
        db.run(TAKE_DOWN).await;
    }
    assert_eq!(
        db.said(CHECK_JOBS).await,
        ["mine|0 3 * * *|t"],
        "a job of the user's stays"
    );
}

#[tokio::test]
async fn the_purge_job_as_its_line_reads_without_the_dashes_is_one_statement_of_the_guides() {
    let mut db = Database::migrated().await;
    let (_, purge) = SET_UP
        .split_once("-- select cron.schedule('visit-pacer: purge', '0 2 * * *', '")
        .expect("daily at 2:00");
    let (command, _) = purge.split_once("');").expect("its end");
    assert_eq!(db.said(command.replace("''", "'")).await, [""; 0]);
}

#[tokio::test]
async fn where_pg_cron_is_not_loaded_it_says_what_to_do_and_taking_down_is_no_error() {
    let mut db = Database::migrated().await;
    let refused = db.try_run(SET_UP).await.expect_err("not loaded");
    let (_, words) = crate::harness::refusal(&refused);
    assert!(
        words.contains("pg_cron is not there") && words.contains("Enable"),
        "{words}"
    );
    db.run(TAKE_DOWN).await;
}

#[tokio::test]
async fn the_jobs_command_stands_back_while_an_agent_lives_and_takes_over_when_it_does_not() {
    let place = Place::new().await;
    let mut agent = place.agent().await;
    let row = place.insert(100_000, "10 a second", "null").await;
    place.has_stored(row, 5).await;
    assert_eq!(
        said(&place.db, command()).await,
        [""; 0],
        "not asked for a row"
    );

    agent.kill();
    assert_eq!(
        said(&place.db, command()).await,
        [""; 0],
        "it may yet come back"
    );
    place
        // As after the database's clock was set back by an hour.
        .edit("update visit_pacer_agents set last_heartbeat_at = last_heartbeat_at + interval '1 hour'")
        .await;
    let before = place.stored(row).await;
    wait_until("the command stores", crate::harness::PATIENCE, async || {
        let told = said(&place.db, command()).await;
        assert_eq!(told.len(), 1, "{told:?}");
        place.stored(row).await > before
    })
    .await;
    place.ledger_is_sound(row).await;

    let _agent = place.agent().await;
    assert_eq!(said(&place.db, command()).await, [""; 0]);
    place.finishes(row).await;
}
