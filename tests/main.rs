//! The contract, held against the real program, a real PostgreSQL and the demo's Realtime server: nothing is mocked.
//!
//! One binary, so that one PostgreSQL serves the whole run; `harness` has it. Each file below `contract` shows one promise,
//! and each test's name is a sentence of it; `realtime_server` and `peers` hold the stand-in for Realtime to the real one's
//! words and to the official clients, `traffic` it and our own client to recordings of the real one.
//! `deploy` checks the deployment kit with the tools of its trade. `VISIT_PACER_TEST_LONG=1` runs the long forms.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that panics has failed, and what it prints is shown then"
)]

mod chaos;
mod contract;
mod deploy;
mod fuzz;
mod guide;
mod harness;
mod interleavings;
mod oracle;
mod peers;
mod realtime_server;
mod tidy;
mod traffic;
