//! The dashboard shows what is so, its edits are edits of the table, and without the token it shows nothing.

use std::net::Ipv4Addr;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Agent, PATIENCE, Place, find, wait_until};

/// The token of the agents that have one.
pub const TOKEN: &str = "a-token-of-our-own-0123456789";

/// A browser, or a client that pretends to be one.
pub struct Visitor {
    /// Follows no redirection.
    pub client: reqwest::Client,
    /// `http://ADDRESS`
    pub base: String,
    headers: Vec<(&'static str, String)>,
}

impl Visitor {
    /// On this machine.
    pub fn of(agent: &Agent) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, agent)
    }

    /// At that address.
    pub fn at(address: Ipv4Addr, agent: &Agent) -> Self {
        // No TLS here, but the client asks for a provider of it; the first one stays.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = reqwest::Client::builder()
            .no_proxy()
            .local_address(Some(address.into()))
            .redirect(reqwest::redirect::Policy::none());
        Self {
            client: client.build().expect("a client"),
            base: format!("http://{}", agent.address()),
            headers: Vec::new(),
        }
    }

    /// Sends this header as well.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The status and the text of the response.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, String) {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .header("content-type", content_type)
            .body(body);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let response = request.send().await.expect("an answer");
        let status = response.status();
        (status, response.text().await.unwrap_or_default())
    }

    /// Posts JSON; the status and the JSON of the response.
    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = self
            .send(Method::POST, path, "application/json", body.to_string())
            .await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Edits a distribution.
    async fn edit(&self, id: Uuid, edit: &str, body: Value) -> (StatusCode, Value) {
        let path = format!("/api/distributions/{id}/{edit}");
        self.post(&path, body).await
    }

    /// Gets a page.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        self.send(Method::GET, path, "text/plain", "").await
    }

    /// The whole snapshot.
    pub async fn snapshot(&self) -> Value {
        let (status, text) = self.get("/api/snapshot").await;
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// A distribution, once the dashboard shows it like that.
    async fn sees(&self, id: Uuid, what: &str, like: impl Fn(&Value) -> bool) -> Value {
        find(
            format!("the dashboard shows: {what}"),
            PATIENCE,
            async || {
                let snapshot = self.snapshot().await;
                let rows = snapshot["distributions"].as_array()?.clone();
                let row = rows.into_iter().find(|row| row["id"] == json!(id))?;
                like(&row).then_some(row)
            },
        )
        .await
    }
}

/// An agent with these settings as well, that is ready.
pub async fn agent_with(place: &Place, settings: &[(&str, &str)]) -> Agent {
    let mut environment = place.environment();
    for (name, value) in settings {
        environment.push(((*name).to_owned(), (*value).to_owned()));
    }
    let agent = Agent::start(&place.folder, &["run"], &environment).await;
    agent.ready().await;
    agent
}

#[tokio::test]
async fn each_distribution_is_shown_with_its_target_its_state_and_its_reason() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let visitor = Visitor::of(&agent);
    let row = place.insert(1_000_000, "33.25 a second", "null").await;
    let bad = place.insert(10, "1 a second", "null").await;
    place
        .edit(format!(
            "alter table visit_distribution disable trigger all;
             update visit_distribution set visits_per_unit = -1, config_version = config_version + 1 where id = '{bad}';
             alter table visit_distribution enable trigger all;
             update visit_distribution set is_active = is_active where id = '{bad}'"
        ))
        .await;
    let shown = visitor
        .sees(row, "visits", |row| row["distributed"].as_i64() > Some(30))
        .await;
    assert_eq!(shown["visits_per_unit"], "33.25");
    assert_eq!(shown["time_period"], "second");
    assert_eq!(shown["partner_id"], json!(place.partner));
    assert_eq!(shown["status"], "active");
    assert_eq!(shown["reason"], Value::Null);

    let shown = visitor
        .sees(bad, "invalid", |row| row["status"] == "invalid")
        .await;
    let why = shown["reason"].as_str().expect("a reason");
    assert!(
        why.contains("visits_per_unit is -1") && why.contains("as soon as the row is corrected"),
        "{why}"
    );

    place
        .edit("update visit_pacer_control set paused = true")
        .await;
    let shown = visitor
        .sees(row, "everything paused", |row| row["reason"] != Value::Null)
        .await;
    let why = shown["reason"].as_str().expect("a reason");
    assert!(why.contains("Everything is paused"), "{why}");
    place
        .edit("update visit_pacer_control set paused = false")
        .await;

    let mut editor = place.db.acquire().await.expect("a connection");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "begin; select from visit_distribution where id = '{row}' for update"
    )))
    .execute(&mut *editor)
    .await
    .expect("a lock");
    let shown = visitor
        .sees(row, "behind", |row| row["status"] == "behind")
        .await;
    let why = shown["reason"].as_str().expect("a reason");
    assert!(
        why.contains("Another transaction has locked this row"),
        "{why}"
    );
    let (status, answer) = visitor.edit(row, "pause", json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        answer["error"].to_string().contains("another transaction"),
        "{answer}"
    );
    sqlx::raw_sql("rollback")
        .execute(&mut *editor)
        .await
        .expect("the end");
    visitor
        .sees(row, "active again", |row| row["status"] == "active")
        .await;
}

#[tokio::test]
async fn an_invalid_row_shows_what_can_be_read_and_a_missing_partner_is_a_reason() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let visitor = Visitor::of(&agent);
    let bad = place.insert(4_321, "30 a minute", "null").await;
    let left = place.insert(1_000, "5 a second", "null").await;
    place
        .edit(format!(
            "alter table visit_distribution disable trigger all;
             update visit_distribution set visits_per_unit = 'NaN', config_version = config_version + 1 where id = '{bad}';
             alter table visit_distribution enable trigger all"
        ))
        .await;
    // While a browser listens.
    let events = format!("{}/api/events", visitor.base);
    let watched = visitor.client.get(events).send().await.expect("a stream");
    let shown = visitor
        .sees(bad, "what can be read", |row| row["total_visits"] == 4_321)
        .await;
    assert_eq!(shown["status"], "invalid");
    assert_eq!(shown["partner_id"], json!(place.partner));
    assert_eq!(shown["time_period"], "minute");
    assert_eq!(shown["is_active"], true);

    place
        .edit(format!(
            "begin; set local session_replication_role = replica;
             insert into partners (id) values (gen_random_uuid());
             update visit_distribution set partner_id = '00000000-0000-4000-8000-00000000dead' where id = '{left}'; commit"
        ))
        .await;
    visitor
        .sees(left, "no partner", |row| {
            let why = row["reason"].as_str().unwrap_or("");
            why.contains("00000000-0000-4000-8000-00000000dead does not exist in partners")
        })
        .await;
    drop(watched);
}

#[tokio::test]
async fn a_change_on_the_page_is_an_edit_of_the_table() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let visitor = Visitor::of(&agent);
    let row = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(row, 20).await;

    let (status, _) = visitor.edit(row, "pause", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let at_the_answer = place.stored(row).await;
    visitor
        .sees(row, "paused", |row| row["status"] == "paused")
        .await;
    assert_eq!(place.stored(row).await, at_the_answer);

    let body = json!({ "visits_per_unit": "12.5", "time_period": "minute" });
    let (status, _) = visitor.edit(row, "rate", body).await;
    assert_eq!(status, StatusCode::OK);
    let rate: String = place
        .ask(format!("select visits_per_unit || ' a ' || time_period from visit_distribution where id = '{row}'"))
        .await;
    assert_eq!(rate, "12.5 a minute");

    let bad = json!({ "visits_per_unit": "-1", "time_period": "minute" });
    let (status, answer) = visitor.edit(row, "rate", bad).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["error"]
            .to_string()
            .contains("visits_per_unit is -1"),
        "{answer}"
    );
    let text = json!({ "visits_per_unit": "lots", "time_period": "minute" });
    let (status, _) = visitor.edit(row, "rate", text).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);

    let (status, _) = visitor.edit(row, "resume", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    visitor
        .sees(row, "no pause", |row| row["status"] != "paused")
        .await;

    let before = place.stored(row).await;
    let path = format!("/api/partners/{}/distribute", place.partner);
    wait_until("40 visits, beside the agent's own", PATIENCE, async || {
        let (status, answer) = visitor.post(&path, json!({ "visits": 40 })).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["added"] == json!(40)
    })
    .await;
    assert!(place.stored(row).await >= before + 40);

    let (status, answer) = visitor.edit(Uuid::from_u128(1), "pause", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    let (status, _) = visitor.post("/api/pause", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        place
            .ask::<bool>("select paused from visit_pacer_control")
            .await
    );
    let (status, _) = visitor.post("/api/resume", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        !place
            .ask::<bool>("select paused from visit_pacer_control")
            .await
    );
}

#[tokio::test]
async fn the_detail_of_a_distribution_has_its_seconds_and_its_curve() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let visitor = Visitor::of(&agent);
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 120).await;
    let detail = find("three seconds that have settled", PATIENCE, async || {
        let (status, text) = visitor.get(&format!("/api/distributions/{row}")).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let detail: Value = serde_json::from_str(&text).expect("JSON");
        let seconds = detail["seconds"].as_array()?.clone();
        let full = seconds
            .iter()
            .filter(|second| second["target"] == json!(20))
            .count();
        (full >= 3).then_some(detail)
    })
    .await;
    for second in detail["seconds"].as_array().expect("seconds") {
        if second["target"] == json!(20) {
            assert_eq!(second["stored"], json!(20), "{second}");
        }
    }
    let stored = detail["curve"]["stored"].as_array().expect("points");
    assert!(stored.len() > 50 && stored.len() <= 200, "{}", stored.len());
    assert_eq!(detail["distribution"]["id"], json!(row));
    let (status, _) = visitor
        .get(&format!("/api/distributions/{}", Uuid::from_u128(1)))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_listener_gets_each_seconds_changes_and_an_edit_in_sql_at_once() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    let visitor = Visitor::of(&agent);
    let url = format!("{}/api/events?distribution={row}", visitor.base);
    let mut stream = visitor.client.get(url).send().await.expect("a stream");
    let mut text = String::new();
    let mut receives = async |words: &str| {
        let mut chunks = 0;
        while !text.contains(words) && chunks < 1_000 {
            chunks += 1;
            let chunk = tokio::time::timeout(PATIENCE, stream.chunk()).await;
            let chunk = chunk.expect("in time").expect("a line").expect("no end");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert!(text.contains(words), "{words}");
    };
    receives("event: snapshot").await;
    receives("event: overview").await;
    receives("\"distributed\":").await;
    receives("event: seconds\n").await;
    place.set(row, "visits_per_unit = 77").await;
    receives("\"visits_per_unit\":\"77\"").await;
    place
        .edit(format!("delete from visit_distribution where id = '{row}'"))
        .await;
    receives(&format!("\"removed\":[\"{row}\"]")).await;
}

#[tokio::test]
async fn a_read_only_page_shows_everything_and_changes_nothing() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_READ_ONLY", "true")]).await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    let visitor = Visitor::of(&agent);
    visitor.sees(row, "it", |_| true).await;
    assert_eq!(visitor.snapshot().await["read_only"], json!(true));
    let (status, answer) = visitor.edit(row, "pause", json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert!(
        place
            .ask::<bool>(format!(
                "select is_active from visit_distribution where id = '{row}'"
            ))
            .await
    );
}

#[tokio::test]
async fn an_address_that_other_machines_reach_is_not_served_without_a_token() {
    let place = Place::new().await;
    let mut environment = place.environment();
    environment.push(("VISIT_PACER_LISTEN".to_owned(), "0.0.0.0:0".to_owned()));
    let refused = crate::harness::agent::command(&place.folder, &["run"], &environment).await;
    assert_eq!(refused.code, Some(78), "{}", refused.said);
    assert!(
        refused.said.contains("VISIT_PACER_TOKEN"),
        "{}",
        refused.said
    );
    environment.push(("VISIT_PACER_TOKEN".to_owned(), "short".to_owned()));
    let refused = crate::harness::agent::command(&place.folder, &["run"], &environment).await;
    assert_eq!(refused.code, Some(78), "{}", refused.said);
    assert!(refused.said.contains("16 or more"), "{}", refused.said);
}

#[tokio::test]
async fn without_a_login_only_the_health_endpoints_answer() {
    let place = Place::new().await;
    let agent = agent_with(&place, &[("VISIT_PACER_TOKEN", TOKEN)]).await;
    let stranger = Visitor::of(&agent);
    for (path, status) in [
        ("/", StatusCode::SEE_OTHER),
        ("/api/snapshot", StatusCode::UNAUTHORIZED),
        ("/api/events", StatusCode::UNAUTHORIZED),
        ("/metrics", StatusCode::UNAUTHORIZED),
        ("/healthz", StatusCode::OK),
        ("/readyz", StatusCode::OK),
        ("/login", StatusCode::OK),
        ("/assets/style.css", StatusCode::OK),
    ] {
        assert_eq!(stranger.get(path).await.0, status, "{path}");
    }
    let form = "application/x-www-form-urlencoded";
    let (status, _) = stranger
        .send(Method::POST, "/login", form, "token=another")
        .await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let logged_in = stranger
        .client
        .post(format!("{}/login", stranger.base))
        .header("content-type", form)
        .body(format!("token={TOKEN}"))
        .send()
        .await
        .expect("an answer");
    let cookie = logged_in.headers()["set-cookie"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(
        cookie.contains("SameSite=Strict") && cookie.contains("HttpOnly"),
        "{cookie}"
    );
    assert!(!cookie.contains(TOKEN));
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    let visitor = Visitor::of(&agent).with("cookie", cookie);
    assert_eq!(visitor.get("/").await.0, StatusCode::OK);
    visitor.snapshot().await;
    let script = Visitor::of(&agent).with("authorization", format!("Bearer {TOKEN}"));
    script.snapshot().await;
}
