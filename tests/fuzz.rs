//! Every parser that outside input reaches, over a corpus and seeded mutations of it: a bounded run of the fuzz targets.
//!
//! `fuzz/targets` has them, `fuzz/corpus` what they begin with (recorded from a real server, its tokens replaced); cargo-fuzz
//! takes the same from there. What it finds goes into the corpus.

mod mutation;
mod targets;

use std::path::Path;

use self::mutation::Mutator;
use crate::harness::long;

/// How much more the long form tries.
const LONG: usize = 50;

/// Runs a target over its corpus, and over so many mutations of each input.
fn holds(target: &str, run: fn(&[u8]), mutations: usize) {
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
    holds("frame", targets::frame::run, 500);
}

#[test]
fn whatever_a_server_sends_the_session_keeps_its_word() {
    holds("session", targets::session::run, 500);
}

#[test]
fn an_event_names_its_row_or_says_why_not() {
    holds("change", targets::change::run, 1_000);
}

#[test]
fn a_row_of_any_text_is_set_aside_or_has_a_curve_that_never_falls() {
    holds("row", targets::row::run, 2_000);
}

#[test]
fn a_message_of_logical_decoding_is_read_to_its_last_byte_or_refused() {
    holds("pgoutput", targets::pgoutput::run, 2_000);
}

#[test]
fn settings_are_taken_or_refused_and_show_no_secret() {
    holds("settings", targets::settings::run, 1_000);
}

#[test]
fn a_request_of_any_bytes_is_answered_or_closed_and_the_next_one_served() {
    holds("http", targets::http::run, 50);
}
