//! The command line: an error is one clear line with an exit code, without a panic and without a secret.

use std::fs::File;
use std::process::Stdio;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::process::Command;
use visit_pacer::postgres::migrations::MIGRATIONS;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Agent, Outcome, PATIENCE, Place, agent, changed, server, url_as, wait_until};

const USAGE: Option<i32> = Some(2);
const CONFIG: Option<i32> = Some(78);

/// `visit-pacer run` with one variable changed, to its end.
async fn run_with(place: &Place, name: &str, value: &str) -> Outcome {
    let environment = place.environment_with(&[(name, value)]);
    agent::command(&place.folder, &["run"], &environment).await
}

fn says_in_one_line(outcome: &Outcome, code: Option<i32>, words: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    let errors: Vec<&str> = outcome
        .said
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "one clear line: {outcome:?}");
    for word in words {
        assert!(
            errors[0].contains(word),
            "expected {word:?} in: {}",
            errors[0]
        );
    }
}

#[tokio::test]
async fn a_setting_that_is_missing_malformed_or_given_twice_is_refused_with_78() {
    let place = Place::new().await;
    let names = ["SUPABASE_DB_URL", "DATABASE_URL"];
    says_in_one_line(&run_with(&place, "DATABASE_URL", "").await, CONFIG, &names);
    let other = "postgres://someone:their-password@127.0.0.1/elsewhere";
    let twice = run_with(&place, "SUPABASE_DB_URL", other).await;
    says_in_one_line(&twice, CONFIG, &names);
    assert!(!twice.said.contains("their-password"));
    let malformed = run_with(&place, "DATABASE_URL", "mysql://u:their-password@h/d").await;
    says_in_one_line(
        &malformed,
        CONFIG,
        &["postgres://user:password@host:port/database"],
    );
    assert!(!malformed.said.contains("their-password"));
    let two_keys = run_with(&place, "SUPABASE_SECRET_KEY", "sb_secret_another_one").await;
    says_in_one_line(
        &two_keys,
        CONFIG,
        &["SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY"],
    );
    let no_key = run_with(&place, "SUPABASE_SERVICE_ROLE_KEY", "").await;
    says_in_one_line(&no_key, CONFIG, &["SUPABASE_SERVICE_ROLE_KEY"]);
    says_in_one_line(
        &run_with(&place, "SUPABASE_URL", "").await,
        CONFIG,
        &["SUPABASE_URL"],
    );
    says_in_one_line(
        &run_with(&place, "VISIT_PACER_LISTEN", "here").await,
        CONFIG,
        &["VISIT_PACER_LISTEN", "here"],
    );
}

#[tokio::test]
async fn a_mistyped_parameter_of_the_database_url_is_not_repeated_at_any_level() {
    let place = Place::new().await;
    let (server, _) = place.url.rsplit_once('/').expect("a database");
    let url = format!("{server}/nowhere?passwrd=hunter2");
    let environment =
        place.environment_with(&[("DATABASE_URL", &url), ("VISIT_PACER_LOG", "trace")]);
    let outcome = agent::command(&place.folder, &["run"], &environment).await;
    assert_eq!(outcome.code, CONFIG, "{outcome:?}");
    assert!(!outcome.said.contains("hunter2"), "{outcome:?}");
}

directly_and_pooled!(a_login_or_database_that_is_refused_at_the_first_connect_ends_with_78);
async fn a_login_or_database_that_is_refused_at_the_first_connect_ends_with_78(via: Via) {
    let place = via.place().await;
    let url = place.agents_url();
    let user = url::Url::parse(&url).expect("a URL").username().to_owned();
    let wrong = url_as(&url, &user, "not-the-password");
    let refused = run_with(&place, "DATABASE_URL", &wrong).await;
    says_in_one_line(&refused, CONFIG, &["login refused", "password"]);
    assert!(!refused.said.contains("not-the-password"));
    let mut elsewhere = url::Url::parse(&place.agents_url()).expect("a URL");
    elsewhere.set_path("/no_such_database");
    let refused = run_with(&place, "DATABASE_URL", elsewhere.as_str()).await;
    says_in_one_line(&refused, CONFIG, &["no_such_database"]);
}

#[tokio::test]
async fn a_missing_or_old_schema_ends_with_78_and_the_error_names_the_command_that_fixes_it() {
    let place = Place::new().await;
    let empty = server::database().await;
    let missing = run_with(&place, "DATABASE_URL", &empty).await;
    says_in_one_line(&missing, CONFIG, &["missing", "visit-pacer migrate"]);
    place
        .edit("delete from visit_pacer_migrations where version = (select max(version) from visit_pacer_migrations)")
        .await;
    let old = place.command(&["run"]).await;
    says_in_one_line(
        &old,
        CONFIG,
        &[
            "old",
            MIGRATIONS.last().expect("files").name,
            "visit-pacer migrate",
        ],
    );
    let migrated = place.command(&["migrate"]).await;
    assert!(
        migrated.code == Some(0) && migrated.said.contains("applied"),
        "{migrated:?}"
    );
    let mut agent = place.agent().await;
    assert!(agent.terminate().await.success());
}

#[tokio::test]
async fn arguments_that_cannot_be_parsed_end_with_2() {
    let place = Place::new().await;
    for arguments in [
        &["frobnicate"][..],
        &["run", "--listen", "nowhere"],
        &["run", "--max-visits-per-second", "0"],
        &["pause"],
        &["pause", "not-an-id"],
        &["resume", "--all", "00000000-0000-0000-0000-000000000001"],
        &["demo", "--for", "soon"],
    ] {
        let outcome = place.command(arguments).await;
        assert_eq!(outcome.code, USAGE, "{arguments:?}: {outcome:?}");
    }
    assert_eq!(place.command(&["--help"]).await.code, Some(0));
    assert!(
        place
            .command(&["--version"])
            .await
            .said
            .starts_with("visit-pacer ")
    );
}

#[tokio::test]
async fn sigterm_finishes_the_present_work_deletes_the_agents_row_and_exits_0() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "500 a second", "null").await;
    let mut agent = place.agent().await;
    place.has_stored(row, 500).await;
    assert!(agent.terminate().await.success());
    assert_eq!(
        place
            .ask::<i64>("select count(*) from visit_pacer_agents")
            .await,
        0,
        "its row is deleted"
    );
    wait_until("its channel is closed", PATIENCE, async || {
        place.realtime.faults().subscribers() == 0
    })
    .await;
    let left: i64 = place.ask(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'visit-pacer'").await;
    assert_eq!(left, 0, "its connections are closed");
    assert!(
        agent.log().trim_end().ends_with("Stopped"),
        "{}",
        agent.log()
    );
    let stored = place.stored(row).await;
    let counted: i64 = place
        .ask(format!(
            "select distributed from visit_distribution_progress where distribution_id = '{row}'"
        ))
        .await;
    assert_eq!(stored, counted);
    let look = place.look(row).await;
    assert!(
        look.reason.is_none()
            || look.reason.as_deref()
                == Some("no agent is running: start one with visit-pacer run"),
        "{look:?}"
    );
    place.becomes(row, "behind").await;
    assert_eq!(
        place.look(row).await.reason.as_deref(),
        Some("no agent is running: start one with visit-pacer run"),
        "who looks sees why it stands still"
    );
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let place = Place::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let outcome = run_with(&place, "VISIT_PACER_LISTEN", &address).await;
    says_in_one_line(&outcome, Some(1), &[&address, "--listen"]);
}

#[tokio::test]
async fn a_flag_goes_before_the_environment_and_the_environment_before_the_env_file() {
    let place = Place::new().await;
    let listen = |text: &str| changed(Vec::new(), &[("VISIT_PACER_LISTEN", text)]);
    let lines: Vec<String> = place
        .environment_with(&[("VISIT_PACER_LISTEN", "'of the file'")])
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    std::fs::write(place.folder.path().join(".env"), lines.join("\n")).expect("a file");
    let of_file = agent::command(&place.folder, &["run"], &[]).await;
    says_in_one_line(&of_file, CONFIG, &["of the file"]);
    let of_environment =
        agent::command(&place.folder, &["run"], &listen("of the environment")).await;
    says_in_one_line(&of_environment, CONFIG, &["of the environment"]);
    Agent::start(&place.folder, &["run"], &listen("127.0.0.1:0"))
        .await
        .ready()
        .await;
    let arguments = ["run", "--listen", "127.0.0.1:0"];
    Agent::start(&place.folder, &arguments, &listen("of the environment"))
        .await
        .ready()
        .await;
}

#[tokio::test]
async fn status_shows_distributions_and_agents_and_sync_reports_what_it_found() {
    let place = Place::new().await;
    let row = place.insert(30, "30 a second", "null").await;
    let _agent = place.agent().await;
    place.becomes(row, "completed").await;
    let shown = place.command(&["status"]).await;
    assert!(
        shown.code == Some(0) && shown.said.contains("completed"),
        "{shown:?}"
    );
    let shown = place.command(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&shown.said).expect("JSON and nothing else");
    assert!(json.to_string().contains(&row.to_string()), "{json}");

    let in_sync = place.command(&["sync"]).await;
    assert!(
        in_sync.code == Some(0) && in_sync.said.contains("in sync"),
        "{in_sync:?}"
    );
    place
        .edit(format!(
            "delete from store_visits where distribution_id = '{row}' and visit_number <= 10"
        ))
        .await;
    let missing = place.command(&["sync"]).await;
    assert!(
        missing.said.contains("10 visits are missing"),
        "{missing:?}"
    );
    assert_eq!(
        place.stored(row).await,
        20,
        "nothing is stored again without --lower"
    );
    let lowered = place.command(&["sync", "--lower"]).await;
    assert!(lowered.said.contains("stored again"), "{lowered:?}");
    wait_until(
        "the missing visits are stored again",
        PATIENCE,
        async || place.stored(row).await == 30,
    )
    .await;
    let highest: i64 = place
        .ask(format!(
            "select max(visit_number) from store_visits where distribution_id = '{row}'"
        ))
        .await;
    assert_eq!(highest, 40, "under new numbers");
}

#[tokio::test]
async fn migrate_print_prints_sql_that_runs_and_changes_nothing_itself() {
    let place = Place::new().await;
    let empty = server::database().await;
    let printed = agent::command(&place.folder, &["migrate", "--print"], &[]).await;
    assert_eq!(printed.code, Some(0));
    let mut connection = PgConnection::connect(&empty).await.expect("a connection");
    sqlx::raw_sql(AssertSqlSafe(printed.said))
        .execute(&mut connection)
        .await
        .expect("it is SQL");
    let environment = [("DATABASE_URL".to_owned(), empty)];
    let migrated = agent::command(&place.folder, &["migrate"], &environment).await;
    assert!(migrated.said.contains("nothing to do"), "{migrated:?}");
}

#[tokio::test]
async fn status_check_prints_one_line_and_ends_with_the_exit_codes_of_monitoring_plugins() {
    let place = Place::new().await;
    let row = place.insert(30, "30 a second", "null").await;
    let without = place.command(&["status", "--check"]).await;
    assert!(
        without.code == Some(2) && without.said.starts_with("CRITICAL - no agent"),
        "{without:?}"
    );
    assert_eq!(without.said.lines().count(), 1, "{without:?}");
    let _agent = place.agent().await;
    place.becomes(row, "completed").await;
    let well = place.command(&["status", "--check"]).await;
    assert!(
        well.code == Some(0) && well.said.starts_with("OK - "),
        "{well:?}"
    );
    let nowhere = "postgres://nobody@127.0.0.1:1/none".to_owned();
    let environment = [("DATABASE_URL".to_owned(), nowhere)];
    let unknown = agent::command(&place.folder, &["status", "--check"], &environment).await;
    assert!(
        unknown.code == Some(3) && unknown.said.starts_with("UNKNOWN - "),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn completions_are_valid_and_every_subcommand_has_a_manual_page() {
    let place = Place::new().await;
    let script = place.command(&["completions", "bash"]).await;
    assert_eq!(script.code, Some(0), "{script:?}");
    let file = place.folder.path().join("completions.bash");
    std::fs::write(&file, &script.said).expect("a folder to write to");
    let read = std::process::Command::new("bash")
        .arg("-n")
        .arg(&file)
        .output()
        .expect("bash");
    assert!(
        read.status.success() && read.stderr.is_empty(),
        "bash -n: {}",
        String::from_utf8_lossy(&read.stderr)
    );
    assert!(script.said.contains("--check"), "the flags are in it");

    let pages = place.folder.path().join("man");
    let written = place
        .command(&["man", "--out", pages.to_str().expect("UTF-8")])
        .await;
    assert_eq!(written.code, Some(0), "{written:?}");
    let help = place.command(&["--help"]).await.said;
    let listed = help
        .split("Commands:")
        .nth(1)
        .and_then(|rest| rest.split("Options:").next())
        .expect("a list of commands");
    let commands: Vec<&str> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 15, "{commands:?}");
    for command in commands {
        let page = pages.join(format!("visit-pacer-{command}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        assert!(text.contains(".SH SYNOPSIS"), "{command} has no page");
    }
}

#[tokio::test]
async fn no_command_panics_on_a_full_disk_or_a_closed_pipe_and_its_work_is_done() {
    let place = Place::new().await;
    let row = place.insert(100, "1 a second", "null").await.to_string();
    let partner = place.partner.to_string();
    let commands: [&[&str]; 10] = [
        &["sync"],
        &["doctor"],
        &["plan", "--total", "100", "--per", "second", "--rate", "3"],
        &["migrate"],
        &["distribute"],
        &["pause", &row],
        &["adopt", "--partner", &partner],
        &["status"],
        &["status", "--json"],
        &["man"],
    ];
    for arguments in commands {
        for closed in [false, true] {
            let output = if closed {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                drop(reader);
                Stdio::from(writer)
            } else {
                Stdio::from(File::create("/dev/full").expect("a full device"))
            };
            let done = Command::new(env!("CARGO_BIN_EXE_visit-pacer"))
                .args(arguments)
                .current_dir(place.folder.path())
                .envs(place.environment())
                .stdout(output)
                .stderr(Stdio::piped())
                .spawn()
                .expect("it runs")
                .wait_with_output()
                .await
                .expect("it ends");
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(!said.contains("panicked"), "{arguments:?}: {said}");
            assert!(
                done.status.code().is_some_and(|code| code < 100),
                "{arguments:?}: {:?}",
                done.status
            );
            if !closed {
                assert!(
                    said.contains("standard output cannot be written")
                        || said.contains("No space left"),
                    "{arguments:?}: {said}"
                );
            }
        }
    }
    let active: bool = place
        .ask(format!(
            "select is_active from visit_distribution where id = '{row}'"
        ))
        .await;
    assert!(!active, "the pause was done");
}
