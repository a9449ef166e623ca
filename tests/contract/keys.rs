//! Keys, tokens and passwords: they open what they are for, and are seen nowhere.

use crate::harness::{Agent, PATIENCE, Place, agent, wait_until};

/// What an agent is told, with one setting in another's place.
fn environment(place: &Place, without: &str, with: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut environment = place.environment();
    environment.retain(|(name, _)| name != without);
    for (name, value) in with {
        environment.push(((*name).to_owned(), (*value).to_owned()));
    }
    environment
}

#[tokio::test]
async fn tokens_of_our_own_outlive_their_seconds_and_the_feed_never_goes_down() {
    const LIFE: &str = "5";
    let place = Place::new().await;
    let told = environment(
        &place,
        "SUPABASE_SERVICE_ROLE_KEY",
        &[
            ("SUPABASE_JWT_SECRET", place.jwt_secret.expose()),
            ("SUPABASE_JWT_SECONDS", LIFE),
        ],
    );
    let agent = Agent::start(&place.folder, &["run"], &told).await;
    agent.ready().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 150).await;
    let log = agent.log();
    assert!(
        !log.contains("expired") && !log.contains("Realtime is away"),
        "{log}"
    );
    assert_eq!(agent.metric("visit_pacer_realtime_live").await, Some(1.0));
}

#[tokio::test]
async fn secrets_are_read_from_files_and_credentials_as_from_the_environment() {
    let place = Place::new().await;
    let file = |name: &str, text: &str| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("written");
        path.to_str().expect("plain").to_owned()
    };
    let url = file("database-url", &place.url);
    file("SUPABASE_SECRET_KEY", place.key.expose());
    let credentials = place.folder.path().to_str().expect("plain").to_owned();
    let mut told = environment(
        &place,
        "SUPABASE_SERVICE_ROLE_KEY",
        &[
            ("CREDENTIALS_DIRECTORY", &credentials),
            ("DATABASE_URL_FILE", &url),
        ],
    );
    told.retain(|(name, _)| name != "DATABASE_URL");
    let agent = Agent::start(&place.folder, &["run"], &told).await;
    agent.ready().await;
}

/// Everything that a run shows, at a level of logging.
async fn all_output(place: &Place, level: &str) -> String {
    let filter =
        format!("{level},visit_pacer={level},sqlx={level},rustls={level},tungstenite={level}");
    let told = environment(place, "", &[("VISIT_PACER_LOG", &filter)]);
    let mut agent = Agent::start(&place.folder, &["run"], &told).await;
    agent.ready().await;
    wait_until("Realtime is live", PATIENCE, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(1.0)
    })
    .await;
    let mut all = String::new();
    for page in ["/metrics", "/healthz", "/readyz"] {
        all += &agent.get(page).await.1;
    }
    agent.terminate().await;
    all += &agent.log();
    for arguments in [&["status"][..], &["doctor"], &["status", "--json"]] {
        all += &agent::command(&place.folder, arguments, &told).await.said;
    }
    all
}

#[tokio::test]
async fn no_key_token_or_password_is_in_any_output_at_any_level_of_logging() {
    let place = Place::new().await;
    let url = url::Url::parse(&place.url).expect("a URL");
    let password = url.password().expect("a password").to_owned();
    let signature = place
        .key
        .expose()
        .rsplit('.')
        .next()
        .expect("a JWT")
        .to_owned();
    for level in ["info", "debug", "trace"] {
        let all = all_output(&place, level).await;
        assert!(all.contains("visit_pacer"), "something was said at {level}");
        for (what, secret) in [("password", &password), ("key", &signature)] {
            assert!(
                !all.contains(secret.as_str()),
                "the {what} is shown at {level}"
            );
        }
    }
}

#[tokio::test]
async fn a_key_that_is_refused_is_not_repeated() {
    let place = Place::new().await;
    let canary = "sb_secret_canary_0123456789abcdef";
    let told = environment(
        &place,
        "SUPABASE_SERVICE_ROLE_KEY",
        &[
            ("SUPABASE_SECRET_KEY", canary),
            ("VISIT_PACER_LOG", "trace"),
        ],
    );
    let agent = Agent::start(&place.folder, &["run"], &told).await;
    agent.says("401").await;
    let shown = agent.log() + &agent.get("/readyz").await.1;
    assert!(!shown.contains("canary_0123456789"), "{shown}");
}
