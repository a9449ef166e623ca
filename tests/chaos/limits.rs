//! What the server allows is exhausted: connections, statement time, write access, disk space.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

use crate::chaos::{DRAINS_WITHIN, Rows};
use crate::harness::{Place, long, server, url_as, wait_until};

/// How long each limit lasts.
fn spell() -> Duration {
    Duration::from_secs(if long() { 60 } else { 6 })
}

/// Warnings of one outage: each of the three workers may report its beginning and its end a few times.
const WARNINGS_MAX: usize = 12;

/// Ends the sessions of a database's agents.
const END_SESSIONS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
  where datname = current_database() and application_name = 'visit-pacer'";

#[tokio::test]
async fn statements_that_exceed_their_time_limit_are_retried() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    // As a statement_timeout, without the wait: the same SQLSTATE, handled by the same code.
    place
        .edit(
            "create table cancels (at timestamptz);
             create function cancel() returns trigger language plpgsql as $$ begin
               if random() < 0.004 then
                 raise exception 'canceling statement due to statement timeout' using errcode = '57014';
               end if;
               return new;
             end $$;
             create trigger cancel before insert on store_visits for each row execute function cancel();",
        )
        .await;
    agent
        .says("canceling statement due to statement timeout")
        .await;
    sleep(spell()).await;
    place.edit("drop trigger cancel on store_visits").await;
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, "statements cancelled")
        .await;
}

#[tokio::test]
async fn without_a_free_connection_the_agent_waits_and_continues_with_those_it_gets() {
    let place = Place::new().await;
    let role = format!("limited_{:016x}", rand::random::<u64>());
    place
        .edit(format!(
            "create role {role} login password 'a limited role' bypassrls;
             grant all on all tables in schema public to {role};
             grant execute on all functions in schema public to {role};"
        ))
        .await;
    let url = url_as(&place.url, &role, "a limited role");
    let rows = Rows::of(&place).await;
    let agent = place.start_agent_at(&url).await;
    agent.ready().await;
    rows.make_progress(&place).await;

    for limit in [0, 1, 2] {
        place
            .edit(format!("alter role {role} connection limit {limit}"))
            .await;
        place.edit(END_SESSIONS).await;
        if limit == 0 {
            let mut second = place.start_agent_at(&url).await;
            second.unready("too many connections").await;
            second.terminate().await;
        }
        sleep(spell()).await;
    }
    place
        .edit(format!("alter role {role} connection limit -1"))
        .await;
    rows.make_progress(&place).await;
    agent.ready().await;
    rows.stored_exactly_once(&place, &agent, "no connection left")
        .await;
}

#[tokio::test]
async fn a_database_that_becomes_read_only_is_reported_and_written_to_once_it_is_writable() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    let name = place.url.rsplit('/').next().expect("a database");
    let before = agent.warnings();
    let elsewhere = sqlx::PgPool::connect(&server::shared().url("postgres"))
        .await
        .expect("a connection");
    let set = async |value: &str| {
        let sql = format!("alter database {name} set default_transaction_read_only = {value}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&elsewhere)
            .await
            .expect("the setting is changed");
    };
    set("on").await;
    place.ask::<i64>(END_SESSIONS).await;
    agent.says("read-only").await;
    sleep(spell()).await;
    set("off").await;
    rows.make_progress(&place).await;
    agent.ready().await;
    let warnings = agent.warnings() - before;
    assert!(
        warnings <= WARNINGS_MAX,
        "{warnings} warnings:\n{}",
        agent.log()
    );
    rows.stored_exactly_once(&place, &agent, "database read-only")
        .await;
}

/// A small disk for one table: a tablespace on a file system of its own, unmounted at the end. Where mounting is not allowed, a
/// trigger that fails like a full disk.
enum Disk {
    Small(PathBuf),
    Simulated,
}

impl Disk {
    async fn of(place: &Place) -> Self {
        let path = place.folder.path().join("disk");
        std::fs::create_dir(&path).expect("an empty folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(&path)
            .output()
            .is_ok_and(|done| done.status.success());
        if !mounted {
            place
                .edit(
                    "create function disk_full() returns trigger language plpgsql as $$ begin
                       raise exception 'could not extend file: No space left on device' using errcode = '53100';
                     end $$",
                )
                .await;
            return Self::Simulated;
        }
        let disk = Self::Small(path.clone());
        let space = path.join("space");
        std::fs::create_dir(&space).expect("an empty folder");
        let server = place.server.as_ref().expect("a server of its own");
        let owner = std::fs::metadata(server.data_dir().join("cluster")).expect("the cluster");
        chown(&space, Some(owner.uid()), Some(owner.gid())).expect("its new owner");
        place
            .edit(format!(
                "create tablespace small location '{}'",
                space.display()
            ))
            .await;
        place
            .edit("alter table store_visits set tablespace small")
            .await;
        disk
    }

    async fn fill(&self, place: &Place) {
        match self {
            Self::Simulated => {
                place
                    .edit("create trigger disk_full before insert on store_visits for each row execute function disk_full()")
                    .await;
            }
            Self::Small(_) => {
                place
                    .edit("create table ballast (bytes text) tablespace small")
                    .await;
                wait_until("the disk is full", DRAINS_WITHIN, async || {
                    let grown = place
                        .try_edit("insert into ballast select repeat('x', 1900) from generate_series(1, 4)")
                        .await;
                    grown.is_err_and(|error| {
                        error
                            .as_database_error()
                            .is_some_and(|error| error.code().as_deref() == Some("53100"))
                    })
                })
                .await;
            }
        }
    }

    async fn free(&self, place: &Place) {
        match self {
            Self::Simulated => place.edit("drop trigger disk_full on store_visits").await,
            Self::Small(path) => {
                let bigger = Command::new("mount")
                    .args(["-o", "remount,size=64m"])
                    .arg(path)
                    .status();
                assert!(
                    bigger.is_ok_and(|status| status.success()),
                    "the disk can grow"
                );
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Small(path) = self {
            // If this fails, a small mount stays in the temporary directory.
            Command::new("umount").arg("-l").arg(path).status().ok();
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_once_and_no_visit_is_lost_when_there_is_space_again() {
    let place = Place::apart().await;
    let disk = Disk::of(&place).await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    let before = agent.warnings();
    disk.fill(&place).await;
    agent.says("No space left on device").await;
    sleep(spell()).await;
    disk.free(&place).await;
    rows.make_progress(&place).await;
    let warnings = agent.warnings() - before;
    assert!(
        warnings <= WARNINGS_MAX,
        "{warnings} warnings:\n{}",
        agent.log()
    );
    let kind = match &disk {
        Disk::Small(_) => "a full disk",
        Disk::Simulated => "a simulated full disk (mounting is not allowed here)",
    };
    rows.stored_exactly_once(&place, &agent, kind).await;
}
