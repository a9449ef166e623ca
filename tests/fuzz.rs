//! A bounded run of the fuzz targets: every parser of outside input, over a corpus and seeded mutations of it.
//!
//! `fuzz/targets` has the targets and `fuzz/corpus` the corpus (recorded from a real server, tokens replaced), which cargo-fuzz
//! uses too. What it finds is added to the corpus.

mod mutation;
mod targets;

use std::path::Path;

use self::mutation::Mutator;
use crate::harness::long;

/// How many times more the long form tries.
const LONG: usize = 50;

/// Runs a target over its corpus, and over that many mutations of each input.
fn fuzz(target: &str, run: fn(&[u8]), mutations: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(&folder)
        .expect("a corpus")
        .map(|file| file.expect("a file").path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).expect("readable"))
        .collect();
    let mutations = if long() { mutations * LONG } else { mutations };
    let mut mutator = Mutator::new(&corpus);
    let mut tried = 0;
    for input in &corpus {
        attempt(target, run, input);
        for _ in 0..mutations {
            attempt(target, run, &mutator.mutate(input));
        }
        tried += 1 + mutations;
    }
    println!(
        "{target}: {tried} inputs from {} of the corpus",
        corpus.len()
    );
}

fn attempt(target: &str, run: fn(&[u8]), input: &[u8]) {
    assert!(
        std::panic::catch_unwind(|| run(input)).is_ok(),
        "{target} fails with: {}",
        input.escape_ascii()
    );
}

#[test]
fn frames_of_both_versions_are_read_or_refused_and_read_back_as_they_were() {
    fuzz("frame", targets::frame::run, 500);
}

#[test]
fn whatever_a_server_sends_the_session_keeps_its_invariants() {
    fuzz("session", targets::session::run, 500);
}

#[test]
fn an_event_names_its_row_or_says_why_it_cannot() {
    fuzz("change", targets::change::run, 1_000);
}

#[test]
fn a_row_of_any_text_is_invalid_or_has_a_curve_that_never_decreases() {
    fuzz("row", targets::row::run, 2_000);
}

#[test]
fn a_message_of_logical_decoding_is_read_to_its_last_byte_or_refused() {
    fuzz("pgoutput", targets::pgoutput::run, 2_000);
}

#[test]
fn settings_are_accepted_or_refused_and_show_no_secret() {
    fuzz("settings", targets::settings::run, 1_000);
}

#[test]
fn a_request_of_any_bytes_is_answered_or_closed_and_the_next_one_answered() {
    fuzz("http", targets::http::run, 50);
}
