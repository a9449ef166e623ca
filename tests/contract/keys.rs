//! Keys, tokens and passwords: they work while they are valid, and appear in no output.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::{Connection as _, PgConnection};
use visit_pacer::demo::realtime_server::{RealtimeOptions, RealtimeServer, Refusal, Severance};
use visit_pacer::domain::secret::Secret;

use crate::harness::server::Scratch;
use crate::harness::{Agent, PATIENCE, Place, agent, find, wait_until};

#[tokio::test]
async fn tokens_that_the_agent_mints_are_renewed_in_time_and_realtime_stays_live() {
    // Renewed after half of it: a busy machine has five seconds.
    const LIFE: &str = "10";
    let place = Place::new().await;
    let agent = place
        .start_agent_with(&[
            ("SUPABASE_SERVICE_ROLE_KEY", ""),
            ("SUPABASE_JWT_SECRET", place.jwt_secret.expose()),
            ("SUPABASE_JWT_SECONDS", LIFE),
        ])
        .await;
    agent.ready().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 150).await;
    let log = agent.log();
    assert!(
        !log.contains("expired") && !log.contains("Realtime is not live"),
        "{log}"
    );
    assert_eq!(agent.metric("visit_pacer_realtime_live").await, Some(1.0));
}

/// The value of a metric.
async fn metric(agent: &Agent, name: &str) -> f64 {
    let name = format!("visit_pacer_{name}");
    agent.metric(&name).await.expect("the metric")
}

/// Waits until Realtime is live again and more than `syncs` full syncs have completed.
async fn has_synced(agent: &Agent, syncs: f64) {
    wait_until("live and synced again", PATIENCE, async || {
        metric(agent, "realtime_live").await > 0.0 && metric(agent, "syncs_total").await > syncs
    })
    .await;
    agent.ready().await;
}

#[tokio::test]
async fn a_closed_realtime_connection_is_opened_again_and_no_edit_is_missed() {
    let place = Place::new().await;
    let edited = place.insert(1_000_000, "20 a second", "null").await;
    let deleted = place.insert(1_000_000, "10 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(edited, 1).await;
    place.has_stored(deleted, 1).await;
    for severance in [Severance::Restart, Severance::Abrupt] {
        let syncs = metric(&agent, "syncs_total").await;
        let faults = place.realtime.faults();
        faults.refuse_connects(Some(Refusal::Reset));
        faults.drop_connections(severance);
        wait_until("the cut is noticed", PATIENCE, async || {
            metric(&agent, "realtime_live").await < 1.0
        })
        .await;
        place.set(edited, "visits_per_unit = 40").await;
        let inserted = place.insert(20, "20 a second", "null").await;
        faults.refuse_connects(None);
        has_synced(&agent, syncs).await;
        place.becomes(inserted, "completed").await;
        assert_eq!(place.settles(inserted).await, 20);
        let heard = metric(&agent, "realtime_events_total").await;
        place.set(edited, "visits_per_unit = 20").await;
        wait_until(
            "events arrive on the new connection",
            PATIENCE,
            async || metric(&agent, "realtime_events_total").await > heard,
        )
        .await;
    }
    assert_eq!(place.seconds_off_the_curve(edited).await, [""; 0]);
    place.finish(&[edited, deleted]).await;
}

#[tokio::test]
async fn a_subscription_that_expires_with_its_secret_key_continues_on_a_new_socket() {
    const CUTS: usize = 3;
    let mut place = Place::new().await;
    let key = "sb_secret_that_is_good_for_seconds_at_a_time";
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut options = RealtimeOptions::new(listen, place.url.clone(), place.jwt_secret.clone());
    options.extra_keys = vec![Secret::new(key)];
    options.limits.opaque_key_life = Duration::from_secs(4);
    place.realtime = RealtimeServer::start(options).await.expect("a start");
    place.key = Secret::new(key);
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    for cut in 1..=CUTS {
        let syncs = metric(&agent, "syncs_total").await;
        wait_until("the key expires", PATIENCE, async || {
            agent.log().matches("Token has expired").count() >= cut
        })
        .await;
        place
            .set(row, &format!("visits_per_unit = {}", 20 + cut))
            .await;
        has_synced(&agent, syncs).await;
    }
    let log = agent.log();
    assert!(
        !log.contains("API key rejected"),
        "a valid key is not reported as wrong: {log}"
    );
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    place.finishes(row).await;
}

#[tokio::test]
async fn secrets_are_read_from_files_and_credentials_too() {
    let place = Place::new().await;
    let file = |name: &str, text: &str| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("written");
        path.to_str().expect("plain").to_owned()
    };
    let url = file("database-url", &place.url);
    file("SUPABASE_SECRET_KEY", place.key.expose());
    let credentials = place.folder.path().to_str().expect("plain").to_owned();
    let agent = place
        .start_agent_with(&[
            ("SUPABASE_SERVICE_ROLE_KEY", ""),
            ("DATABASE_URL", ""),
            ("CREDENTIALS_DIRECTORY", &credentials),
            ("DATABASE_URL_FILE", &url),
        ])
        .await;
    agent.ready().await;
}

/// Every level of logging.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// How each JWT begins: `{"`, in base64url.
const JWT: &str = "eyJ";

/// That level for the program and every library that has access to a secret.
fn filter(level: &str) -> String {
    format!("{level},visit_pacer={level},sqlx={level},rustls={level},tungstenite={level}")
}

/// All output of a run and of commands, at a log level.
async fn output_of_a_run(place: &Place, level: &str) -> String {
    let variables = place.environment_with(&[
        ("VISIT_PACER_LOG", &filter(level)),
        ("SUPABASE_JWT_SECRET", place.jwt_secret.expose()),
    ]);
    let mut all = String::new();
    let mut agent = Agent::launch(
        &place.folder,
        &["run", "--listen", "127.0.0.1:0"],
        &variables,
    );
    wait_until("an agent works", PATIENCE, async || {
        agent.still_runs();
        place
            .ask("select exists (select from visit_pacer_agents where realtime = 'live')")
            .await
    })
    .await;
    if agent.log().contains("listen=") {
        agent.find_address().await;
        for page in ["/metrics", "/healthz", "/readyz"] {
            all += &agent.get(page).await.1;
        }
    }
    assert!(agent.terminate().await.success());
    all += &agent.log();
    for arguments in [&["status"][..], &["doctor"], &["status", "--json"]] {
        all += &agent::command(&place.folder, arguments, &variables)
            .await
            .said;
    }
    all
}

#[tokio::test]
async fn no_key_token_or_password_is_in_any_output_of_a_run_at_any_log_level() {
    let place = Place::new().await;
    let url = url::Url::parse(&place.url).expect("a URL");
    let password = url.password().expect("a password").to_owned();
    for level in LEVELS {
        let all = output_of_a_run(&place, level).await;
        assert!(all.contains("agent"), "there is output at {level}");
        let secrets = [
            ("password", password.as_str()),
            ("JWT secret", place.jwt_secret.expose()),
            ("key or token", JWT),
        ];
        for (what, secret) in secrets {
            assert!(!all.contains(secret), "the {what} is shown at {level}");
        }
    }
}

/// All output of a demo at a log level, from its start to its end. Its data are kept.
async fn output_of_a_demo(folder: &Scratch, level: &str) -> String {
    let (data, file) = (folder.path().join("data"), folder.path().join(level));
    let variables = [("VISIT_PACER_LOG".to_owned(), filter(level))];
    let (data, file_name) = (data.to_string_lossy(), file.to_string_lossy());
    let places = ["--data-dir", &data, "--env-file", &file_name];
    let ports = ["--db-port", "0", "--realtime-port", "0", "--listen"];
    let arguments = [&["demo"][..], &places, &ports, &["127.0.0.1:0"]].concat();
    let mut demo = Agent::launch(folder, &arguments, &variables);
    let url = find("the demo is ready", PATIENCE, async || {
        demo.still_runs();
        let settings = std::fs::read_to_string(&file).ok()?;
        let url = settings
            .lines()
            .find_map(|line| line.strip_prefix("DATABASE_URL="));
        url.map(ToOwned::to_owned)
    })
    .await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    wait_until("its agent works", PATIENCE, async || {
        sqlx::query_scalar("select exists (select from visit_pacer_agents where realtime = 'live')")
            .fetch_one(&mut connection)
            .await
            .expect("an answer")
    })
    .await;
    connection.close().await.expect("closed");
    demo.signal(Signal::SIGINT);
    assert!(demo.ends_within(PATIENCE).await.success());
    demo.log()
}

#[tokio::test]
async fn no_key_or_token_is_in_any_output_of_the_demo_and_its_password_is_only_in_the_psql_line() {
    let folder = Scratch::new();
    for level in LEVELS {
        let all = output_of_a_demo(&folder, level).await;
        let kept = |name: &str| {
            let text = std::fs::read_to_string(folder.path().join("data").join(name));
            text.expect("kept").trim().to_owned()
        };
        assert!(!all.contains(&kept("jwt-secret")), "the secret, at {level}");
        assert!(!all.contains(JWT), "a key or token is shown at {level}");
        let password = kept("password");
        let shown: Vec<&str> = all
            .lines()
            .filter(|line| line.contains(&password))
            .collect();
        assert!(
            shown.iter().all(|line| line.contains("psql 'postgres://")),
            "the password is shown at {level}: {shown:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_key_is_not_repeated() {
    let place = Place::new().await;
    let canary = "sb_secret_canary_0123456789abcdef";
    let agent = place
        .start_agent_with(&[
            ("SUPABASE_SERVICE_ROLE_KEY", ""),
            ("SUPABASE_SECRET_KEY", canary),
            ("VISIT_PACER_LOG", "trace"),
        ])
        .await;
    agent.says("401").await;
    let shown = agent.log() + &agent.get("/readyz").await.1;
    assert!(!shown.contains("canary_0123456789"), "{shown}");
}
