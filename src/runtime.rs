//! The shell around the core: the only layer that spawns tasks, reads clocks, sleeps and draws randomness.
//!
//! [`driver`] is the one loop; [`lanes`] are the three tasks that talk to the database; [`clock`] is where time comes from;
//! [`words`] says in the log what happened; [`snapshot`] is what everybody else sees; [`serve`] is one agent from start to
//! stop; [`doctor`] asks database and Realtime at once.

pub mod clock;
pub mod doctor;
pub mod driver;
pub mod lanes;
pub mod serve;
pub mod snapshot;
mod words;
