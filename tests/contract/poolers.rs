//! Connection poolers like those of Supabase: detected, used, or refused with the recommended alternative.
//!
//! The promises are tested with a transaction pooler by [`directly_and_pooled`](crate::harness::pooler::directly_and_pooled). Here are
//! the cases that only a pooler has.

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::pooler::{Pooler, Via};
use crate::harness::{Place, agent};

#[tokio::test]
async fn a_transaction_pooler_is_detected_by_its_behaviour_and_the_alternative_named() {
    let place = Via::TransactionPooler.place().await;
    let agent = place.agent().await;
    agent.says("is a transaction pooler").await;
    agent.says(":5432/").await;
}

#[tokio::test]
async fn fifteen_backends_of_a_session_pooler_are_enough_for_two_agents_and_others() {
    let mut place = Place::new().await;
    place.pooler = Some(Pooler::before(&place, "session", 15).await);
    let agents = [place.start_agent().await, place.start_agent().await];
    for agent in &agents {
        agent.ready().await;
        assert!(!agent.log().contains("is a transaction pooler"));
    }
    let row = place.insert(100, "50 a second", "null").await;
    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 100);
    let connections: i64 = place
        .ask(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'visit-pacer'",
        )
        .await;
    // Three each, and one of the check at the start, which the pooler keeps open.
    assert!(
        (1..=8).contains(&connections),
        "{connections} connections of two agents"
    );
    let said = place.command(&["status"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// Other clients of the same pooler, so many that two consecutive statements are rarely of the same one.
struct OtherClients {
    enough: CancellationToken,
    clients: JoinSet<u32>,
}

impl OtherClients {
    const CLIENTS: usize = 8;

    async fn before(place: &Place) -> Self {
        let options = PgConnectOptions::from_str(&place.agents_url()).expect("a URL");
        let options = options.extra_float_digits(None);
        let enough = CancellationToken::new();
        let mut clients = JoinSet::new();
        for _ in 0..Self::CLIENTS {
            let client = PgConnection::connect_with(&options)
                .await
                .expect("a connection");
            clients.spawn(Self::ask(client, enough.clone()));
        }
        Self { enough, clients }
    }

    /// Sends queries until the end, with prepared statements on whichever backend it gets. Returns how many.
    async fn ask(mut client: PgConnection, enough: CancellationToken) -> u32 {
        let mut asked = 0;
        while !enough.is_cancelled() {
            sqlx::raw_sql("begin")
                .execute(&mut client)
                .await
                .expect("a beginning");
            let question: i64 = rand::random();
            let sql = "select $1::bigint, current_setting('statement_timeout')";
            let (answer, bound): (i64, String) = sqlx::query_as(sql)
                .bind(question)
                .persistent(false)
                .fetch_one(&mut client)
                .await
                .expect("an answer");
            assert_eq!(answer, question, "the answer to another client");
            assert_eq!(bound, "0", "a setting of another client");
            sqlx::raw_sql("commit")
                .execute(&mut client)
                .await
                .expect("an end");
            asked += 1;
        }
        asked
    }

    /// Ends them. None has received the answer to another client, or a setting of one.
    async fn end(self) {
        self.enough.cancel();
        let asked: u32 = self.clients.join_all().await.into_iter().sum();
        println!("{asked} transactions of {} other clients", Self::CLIENTS);
    }
}

#[tokio::test]
async fn behind_a_busy_transaction_pooler_agents_and_commands_get_their_own_answers() {
    let place = Via::TransactionPooler.place().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    let agent = place.agent().await;
    let others = OtherClients::before(&place).await;
    place.has_stored(row, 50).await;
    let (partner, row_id) = (place.partner.to_string(), row.to_string());
    let commands: [(&[&str], &str); 9] = [
        (&["status"], "50/s"),
        (&["status", "--json"], &row_id),
        (&["plan", "--id", &row_id], "50"),
        (&["sync"], "in sync"),
        (
            &["distribute", "--partner", &partner, "--visits", "7"],
            "7 visits added",
        ),
        (&["adopt", "--partner", &partner], ""),
        (&["pause", &row_id], &row_id),
        (&["doctor"], "is a transaction pooler"),
        (&["resume", &row_id], &row_id),
    ];
    for (arguments, words) in commands {
        let outcome = place.command(arguments).await;
        assert_eq!(outcome.code, Some(0), "{arguments:?}: {}", outcome.said);
        assert!(
            outcome.said.contains(words),
            "{arguments:?} does not say {words:?}: {}",
            outcome.said
        );
    }
    place.finishes(row).await;
    let log = agent.log();
    assert!(!log.contains("database unreachable"), "{log}");
    drop(agent);
    let purged = place
        .command(&["purge", "--distribution", &row_id, "--yes"])
        .await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert_eq!(place.stored(row).await, 0);
    others.end().await;
}

#[tokio::test]
async fn migrate_refuses_a_transaction_pooler_and_names_the_session_pooler() {
    let place = Via::TransactionPooler.place().await;
    let marked = "postgres://postgres.ref:pass-word@127.0.0.1:6543/postgres".to_owned();
    for url in [marked, place.agents_url()] {
        let environment = place.environment_with(&[("DATABASE_URL", &url)]);
        let outcome = agent::command(&place.folder, &["migrate"], &environment).await;
        assert_eq!(outcome.code, Some(78), "{}", outcome.said);
        let session = url::Url::parse(&url).expect("a URL");
        let session = format!(
            "postgres://{}:PASSWORD@127.0.0.1:5432{}",
            session.username(),
            session.path()
        );
        assert!(
            outcome.said.contains(&session) && !outcome.said.contains("pass-word"),
            "{}",
            outcome.said
        );
    }
}

#[tokio::test]
async fn a_missing_schema_behind_a_transaction_pooler_is_reported_in_one_line() {
    let place = Via::TransactionPooler.place().await;
    place.edit("drop table visit_pacer_migrations").await;
    let outcome = place.command(&["run"]).await;
    assert_eq!(outcome.code, Some(78), "{}", outcome.said);
    assert!(
        outcome.said.contains("missing") && outcome.said.contains("visit-pacer migrate"),
        "{}",
        outcome.said
    );
}
