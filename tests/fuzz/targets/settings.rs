//! What an operator writes into the environment and `.env`: taken or refused, and no secret is ever repeated.

use visit_pacer::domain::secret::Secret;
use visit_pacer::realtime::key::ApiKey;
use visit_pacer::settings::Environment;

/// Part of each secret, so that it is found wherever one is shown.
const CANARY: &str = "canary7391";
/// The settings that a line may have.
const NAMES: [&str; 3] = ["SUPABASE_URL", "REALTIME_URL", "SUPABASE_DB_URL"];

/// The whole as an `.env`; its lines as a key, a user and a place of the database, and settings.
pub fn run(data: &[u8]) {
    if let Err(error) = Environment::with_file(&[], data) {
        let lines = str::from_utf8(data).unwrap_or_default().lines();
        for line in lines.filter(|line| line.contains(CANARY)) {
            assert!(
                !error.to_string().contains(line.trim()),
                "no line is repeated"
            );
        }
    }
    let text = str::from_utf8(data).unwrap_or_default();
    if text.contains(CANARY) {
        return;
    }
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default();
    let (key, user, place) = (format!("{}{CANARY}", line()), line(), line());
    let user: String = user.chars().filter(|c| !"/?#@:\\".contains(*c)).collect();
    let url = format!("postgres://{user}:{CANARY}@{place}");
    let values = NAMES.map(|name| (name, line()));
    let mut process = vec![
        ("SUPABASE_SECRET_KEY", key.as_str()),
        ("DATABASE_URL", &url),
    ];
    process.extend(values);
    let environment = Environment::of(&process, &[]);

    let mut said = Vec::new();
    match environment.database() {
        Ok(database) => said.push(database.place()),
        Err(error) => said.push(error.to_string()),
    }
    match environment.realtime() {
        Ok(endpoint) => said.push(format!("{endpoint} {:?}", endpoint.key())),
        Err(error) => said.push(error.to_string()),
    }
    said.push(format!("{:?}", ApiKey::read(&Secret::new(text))));
    // A place that is taken for the whole address shows itself, with what was put before it.
    if !place.contains(['@', '?', '#']) {
        for words in said {
            assert!(!words.contains(CANARY), "no secret is shown: {words}");
        }
    }
}
