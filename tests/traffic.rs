//! Conformance with recorded traffic of a real server (Realtime v2.129.8).
//!
//! `recordings/` has the traffic and `scenarios.rs` what is expected of each recording. `client.rs` replaces the recorded client by
//! the product's session, `server.rs` the recorded server by that of the demo. `flood.rs` has more traffic than was recorded. Each
//! test prints its report: run it with `--nocapture`.

mod alike;
mod client;
mod flood;
mod recording;
mod scenarios;
mod server;

use futures_util::{StreamExt, stream};

use self::{
    recording::Recording,
    scenarios::{Coverage, SCENARIOS, Scenario},
};

/// Scenarios with the demo's server at once.
const AT_ONCE: usize = 4;

#[test]
fn every_recording_is_in_the_table() {
    let listed: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(Recording::names(), listed);
}

#[test]
fn the_session_reports_what_is_expected_of_each_recording() {
    let mut wrong = Vec::new();
    println!("scenario · channels · what the session reports");
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
async fn the_demos_server_sends_what_the_real_one_sent() {
    let verdicts = stream::iter(SCENARIOS).map(compare).buffered(AT_ONCE);
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

async fn compare(scenario: &Scenario) -> Result<String, String> {
    let name = scenario.name;
    let but = match scenario.coverage {
        Coverage::All => &[],
        Coverage::AllBut(but) => but,
        Coverage::Nothing(reason) => return Ok(format!("{name}: not compared: {reason}")),
    };
    let connections: Vec<&str> = but.iter().map(|&(connection, _)| connection).collect();
    let alike = server::replay(&Recording::read(name), &connections).await?;
    let mut verdict = vec![format!("{name}: {alike} answers alike")];
    for (connection, reason) in but {
        verdict.push(format!("but {connection}: {reason}"));
    }
    Ok(verdict.join("; "))
}
