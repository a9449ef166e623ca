//! The shell around the core: the only layer that spawns tasks, reads clocks, sleeps and draws randomness.
//!
//! [`driver`] is the one loop; [`lanes`] are the three tasks that talk to the database; [`clock`] is where time comes from,
//! `alarm` what wakes the loop;
//! [`board`] is what the dashboard shows and [`desk`] who answers it, [`reasons`] why a row is not on its curve;
//! [`words`] says what happened, [`summary`] once a minute how it went; [`snapshot`] is what everybody else sees, [`readings`]
//! the same as metrics; [`progress`] tells work from hanging, and [`notify`] tells systemd; [`serve`] is one agent from start to
//! stop; [`doctor`] asks database and Realtime at once.

mod alarm;
pub mod clock;
pub mod dashboard;
pub mod doctor;
pub mod driver;
pub mod log_messages;
pub mod metrics;
pub mod notify;
pub mod progress;
pub mod serve;
pub mod snapshot;
pub mod status_reason;
mod summary;
pub mod workers;
