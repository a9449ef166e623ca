//! Conformance by recorded traffic: what a real server (Realtime v2.129.8) once said to its clients.
//!
//! `recordings/` has it, `scenarios.rs` what is expected of it; `client.rs` puts our session in the
//! place of the recorded client, `server.rs` the demo's server in that of the real one; `flood.rs` has
//! more traffic than was recorded. Each test prints its report: run it with `--nocapture`.

mod alike;
mod client;
mod flood;
mod recording;
mod scenarios;
mod server;

use futures_util::{StreamExt, stream};

use self::{
    recording::Recording,
    scenarios::{SCENARIOS, Scenario, Server},
};

/// Scenarios before the demo's server at once.
const AT_ONCE: usize = 4;

#[test]
fn every_recording_has_its_line_in_the_table() {
    let listed: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(Recording::names(), listed);
}

#[test]
fn our_session_makes_of_each_recording_what_was_seen() {
    let mut wrong = Vec::new();
    println!("scenario · channels · what our session tells");
    for scenario in SCENARIOS {
        let recording = Recording::read(scenario.name);
        let told = client::grouped(client::replay(&recording, scenario.as_one));
        println!("{}: {}", scenario.name, scenario.seen);
        for (channels, told) in &told {
            println!("    {channels:40} {told}");
        }
        wrong.extend(difference(scenario, &told));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn difference(scenario: &Scenario, told: &[(String, String)]) -> Option<String> {
    let mut expected: Vec<(String, String)> = scenario
        .told
        .iter()
        .map(|&(channels, told)| (channels.to_owned(), told.to_owned()))
        .collect();
    expected.sort();
    let mut told = told.to_vec();
    told.sort();
    let name = scenario.name;
    (told != expected).then(|| format!("{name}: expected {expected:?}, found {told:?}"))
}

#[tokio::test]
async fn the_demos_server_says_what_the_real_one_said() {
    let verdicts = stream::iter(SCENARIOS).map(hold).buffered(AT_ONCE);
    let verdicts: Vec<Result<String, String>> = verdicts.collect().await;
    println!("scenario · the demo's server");
    for verdict in &verdicts {
        match verdict {
            Ok(verdict) => println!("{verdict}"),
            Err(difference) => println!("{difference}"),
        }
    }
    let wrong: Vec<String> = verdicts.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn hold(scenario: &Scenario) -> Result<String, String> {
    let name = scenario.name;
    let but = match scenario.server {
        Server::Held => &[],
        Server::HeldBut(but) => but,
        Server::Not(reason) => return Ok(format!("{name}: not held: {reason}")),
    };
    let connections: Vec<&str> = but.iter().map(|&(connection, _)| connection).collect();
    let alike = server::replay(&Recording::read(name), &connections).await?;
    let mut verdict = vec![format!("{name}: {alike} answers alike")];
    for (connection, reason) in but {
        verdict.push(format!("but {connection}: {reason}"));
    }
    Ok(verdict.join("; "))
}
