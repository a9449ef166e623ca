//! The dashboard in a real browser: clicks are edits of the table, the keyboard reaches everything, the console stays empty, and
//! axe finds no serious fault on any view, in light and dark, on a desktop and on a phone.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::dashboard::agent_with;
use crate::harness::{Agent, Place};
use crate::peers::install;

const TOKEN: &str = "a token of sixteen letters and more";
/// For all of it.
const LIMIT: Duration = Duration::from_secs(300);
/// Where Debian and others have the browser.
const BROWSERS: [&str; 3] = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
];

#[tokio::test]
async fn an_operators_clicks_are_edits_of_the_table_and_the_page_is_sound() {
    let place = Place::new().await;
    let mut agent = place.agent().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let bad = place.insert(1_000, "1 a second", "null").await;
    let lost = place.insert(1_000, "1 a second", "null").await;
    place
        .edit(format!(
            "alter table visit_distribution disable trigger all;
             update visit_distribution set time_period = 'fortnight', config_version = config_version + 1 where id = '{bad}';
             update visit_distribution set total_visits = null, config_version = config_version + 1 where id = '{lost}';
             alter table visit_distribution enable trigger all"
        ))
        .await;
    place.has_stored(row, 40).await;
    let asked = [
        ("ROW", row.to_string()),
        ("BAD", bad.to_string()),
        ("LOST", lost.to_string()),
    ];
    is_without_fault(&place, &mut agent, &asked).await;
}

#[tokio::test]
async fn a_browser_logs_in_with_the_token_only() {
    let place = Place::new().await;
    let mut agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let asked = [("TOKEN", TOKEN.to_owned())];
    is_without_fault(&place, &mut agent, &asked).await;
}

#[tokio::test]
async fn a_read_only_page_says_so_and_a_disconnected_one_shows_what_is_unknown() {
    let place = Place::new().await;
    let mut agent = agent_with(&place, &[("VISIT_PACER_READ_ONLY", "true")]).await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 40).await;
    let asked = [("READ_ONLY", "true".to_owned()), ("ROW", row.to_string())];
    is_without_fault(&place, &mut agent, &asked).await;
}

/// Runs the script in the browser; runs its queries, and kills the agent at its request.
async fn is_without_fault(place: &Place, agent: &mut Agent, asked: &[(&str, String)]) {
    let browser = BROWSERS.into_iter().find(|path| Path::new(path).exists());
    let browser = browser.expect("a browser; install one: apt install chromium");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    install(&folder).await;
    let mut page = Command::new("node")
        .arg("page.mjs")
        .current_dir(&folder)
        .env("DASHBOARD", format!("http://{}", agent.address()))
        .envs(asked.iter().map(|(name, value)| (name, value)))
        .env("CHROMIUM", browser)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node runs");
    let mut answers = page.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(page.stdout.take().expect("a pipe")).lines();
    let run = async {
        loop {
            let line = lines.next_line().await.expect("it is read");
            let line = line.expect("the script runs to its end");
            let said: Value = serde_json::from_str(&line).expect("JSON");
            if let Some(sql) = said["ask"].as_str() {
                let answer: String = place.ask(sql).await;
                let answered = answers.write_all(format!("{answer}\n").as_bytes()).await;
                answered.expect("it listens");
            } else if said["kill"] == Value::Bool(true) {
                agent.kill();
                let answered = answers.write_all(b"gone\n").await;
                answered.expect("it listens");
            } else if said["done"] == Value::Bool(true) {
                return said["faults"].clone();
            }
        }
    };
    let faults = tokio::time::timeout(LIMIT, run).await.expect("in time");
    assert_eq!(faults, Value::Array(Vec::new()), "{faults:#}");
    page.wait().await.expect("it ends");
}
