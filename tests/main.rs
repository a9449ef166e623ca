//! The contract, held against the real program, a real PostgreSQL and the demo's Realtime server: nothing is mocked.
//!
//! One binary, so that one PostgreSQL serves the whole run; `harness` has it. Each file below `contract` shows one promise,
//! and each test's name is a sentence of it. `VISIT_PACER_TEST_LONG=1` runs the long forms.

mod contract;
mod harness;
