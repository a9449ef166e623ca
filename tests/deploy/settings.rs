//! The settings in the files of `deploy/`: the program knows them and runs with them.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::kit::parsed;
use crate::harness::{Agent, Place};
use crate::tidy::text;

/// The secrets that each deployment mounts as files.
const SECRETS: [&str; 3] = [
    "SUPABASE_DB_URL",
    "SUPABASE_SECRET_KEY",
    "VISIT_PACER_TOKEN",
];
/// The variable that names the folder of these files.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

/// The environment of the pods.
async fn pods() -> Vec<(String, String)> {
    let deployment = parsed("deploy/kubernetes/deployment.yaml").await;
    let environment = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    environment
        .as_array()
        .expect("variables")
        .iter()
        .map(|variable| {
            let [name, value] = ["name", "value"].map(|key| variable[key].as_str());
            (
                name.expect("a name").to_owned(),
                value.expect("a value").to_owned(),
            )
        })
        .collect()
}

fn keys(object: &Value) -> Vec<String> {
    object
        .as_object()
        .expect("an object")
        .keys()
        .cloned()
        .collect()
}

#[tokio::test]
async fn every_setting_in_the_files_is_a_setting_of_the_program() {
    let place = Place::new().await;
    let help = place.command(&["help", "run"]).await.said;
    let compose = parsed("deploy/docker/compose.yaml").await;
    let fly = parsed("deploy/fly/fly.toml").await;
    let unit = text("deploy/systemd/visit-pacer.service");

    let mut named: BTreeSet<String> = SECRETS.map(str::to_owned).into();
    named.extend(pods().await.into_iter().map(|(name, _)| name));
    named.extend(keys(&fly["env"]));
    named.extend(keys(&compose["secrets"]));
    named.extend(keys(&compose["services"]["visit-pacer"]["environment"]));
    named.extend(unit.lines().filter_map(|line| {
        let credential = line.strip_prefix("LoadCredential=")?;
        Some(credential.split_once(':')?.0.to_owned())
    }));
    assert!(named.remove(FOLDER), "the name that systemd gives it");
    for name in named {
        assert!(help.contains(&name), "{name} is unknown to: {help}");
    }
}

#[tokio::test]
async fn with_the_environment_of_the_pods_only_probes_and_prometheus_are_answered_without_a_token()
{
    let place = Place::new().await;
    let secrets = place.folder.path().join("secrets");
    std::fs::create_dir(&secrets).expect("a folder");
    let token = "a token of this test, and of no other";
    for (name, value) in SECRETS.iter().zip([&place.url, place.key.expose(), token]) {
        let path = secrets.join(name);
        std::fs::write(&path, format!("{value}\n")).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o440)).expect("set");
    }
    let mut environment = pods().await;
    for (name, value) in &mut environment {
        match name.as_str() {
            FOLDER => secrets.to_str().expect("plain").clone_into(value),
            "SUPABASE_URL" => *value = place.realtime.supabase_url(),
            "VISIT_PACER_LISTEN" => *value = value.replace(":8787", ":0"),
            _ => {}
        }
    }
    let agent = Agent::start(&place.folder, &["run"], &environment).await;
    assert!(agent.address().ip().is_unspecified(), "others reach it");
    agent.ready().await;
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200)] {
        assert_eq!(agent.get(path).await.0, status, "{path}");
    }
    assert_eq!(
        agent.get("/api/snapshot").await.0,
        401,
        "not without the token"
    );
    assert!(!agent.log().contains(token), "the token is in no log");
}
