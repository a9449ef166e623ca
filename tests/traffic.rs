//! Conformance by recorded traffic: what a real server (Realtime v2.129.8) once said to its clients.
//!
//! `recordings/` has it, `scenarios.rs` what is expected of it, `client.rs` puts our session in the
//! place of the recorded client. Each test prints its report: run it with `--nocapture`.

mod client;
mod recording;
mod scenarios;

use self::{
    recording::Recording,
    scenarios::{SCENARIOS, Scenario},
};

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
        if let Some(difference) = difference(scenario, &told) {
            wrong.push(difference);
        }
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
