//! The deterministic simulation: one to three agents with their real Realtime sessions, against a model database and a model
//! Realtime server, under every fault that the contract names. After every step the promises are checked against a plain
//! reference; after the faults have ended, everything must recover by itself.
//!
//! | file | what |
//! |---|---|
//! | `world` | true time, what is on its way, and the checks; `world/chaos` has faults and edits, `world/calm` the recovery |
//! | `host` | a machine: the agent, the session, the glue between them, its clock, its crashes |
//! | `database` | the model of the tables and statements; `database/people` is what users do to them |
//! | `realtime` | the model of the Realtime server, which sends real frames |
//! | `reference` | what must be stored: shares no code with the program |
//! | `seen` | what must have happened at least once; `dice` is the one source of chance |
//!
//! `cargo test --test sim` runs a fixed set of seeds; millions, or one of them with output:
//!
//! ```sh
//! VISIT_PACER_SIM_SEEDS=1000000 cargo test --release --test sim -- --nocapture
//! VISIT_PACER_SIM_SEED=42 cargo test --test sim -- --nocapture
//! ```
//!
//! `VISIT_PACER_SIM_FROM=N` begins at another seed than 0.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that panics has failed, and what it prints is shown then"
)]

mod database;
mod dice;
mod host;
mod realtime;
mod reference;
mod seen;
mod world;

use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use self::seen::{SOMETIMES, Seen};

/// Seeds of an ordinary run.
const SEEDS: u64 = 10_000;
/// Fewer seeds than these need not have seen everything.
const ENOUGH: u64 = 5_000;

#[test]
fn whatever_happens_every_due_visit_is_stored_once_and_none_is_stored_early_or_past_a_pause() {
    let epoch = Instant::now();
    if let Some(seed) = setting("VISIT_PACER_SIM_SEED") {
        world::simulate(seed, epoch, true);
        return;
    }
    let first = setting("VISIT_PACER_SIM_FROM").unwrap_or(0);
    let seeds = setting("VISIT_PACER_SIM_SEEDS").unwrap_or(SEEDS);
    let Outcome {
        visits,
        seen,
        failed,
    } = simulate_all(first..first + seeds, epoch);
    assert_eq!(
        failed,
        Vec::<u64>::new(),
        "see above; each replays with VISIT_PACER_SIM_SEED=…"
    );
    for what in SOMETIMES {
        eprintln!("{:>10}  {what}", seen.times(what));
    }
    eprintln!(
        "{seeds} seeds, {visits} visits, {:.1} s",
        epoch.elapsed().as_secs_f64()
    );
    assert_eq!(
        seen.unlisted(),
        Vec::<&str>::new(),
        "the list has every name"
    );
    if seeds >= ENOUGH {
        assert_eq!(
            seen.never(),
            Vec::<&str>::new(),
            "each of these happens at some seed"
        );
    }
}

/// The result of several seeds.
#[derive(Default)]
struct Outcome {
    visits: i64,
    seen: Seen,
    failed: Vec<u64>,
}

/// All cores run seeds in turn, until one fails.
fn simulate_all(seeds: Range<u64>, epoch: Instant) -> Outcome {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut outcome = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return outcome;
            }
            match catch_unwind(|| world::simulate(seed, epoch, false)) {
                Ok((visits, seen)) => {
                    outcome.visits += visits;
                    outcome.seen.add(&seen);
                }
                Err(_) => {
                    eprintln!("the simulation fails with VISIT_PACER_SIM_SEED={seed}");
                    outcome.failed.push(seed);
                    next.store(seeds.end, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut all = Outcome::default();
        for worker in workers {
            let outcome = worker.join().expect("a seed that fails is caught");
            all.visits += outcome.visits;
            all.seen.add(&outcome.seen);
            all.failed.extend(outcome.failed);
        }
        all
    })
}

fn setting(name: &str) -> Option<u64> {
    let (_, value) = std::env::vars().find(|(key, _)| key == name)?;
    Some(value.parse().expect("a whole number"))
}
