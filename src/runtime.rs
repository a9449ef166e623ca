//! The shell around the core: the only layer that spawns tasks, reads clocks, sleeps and draws randomness.
//!
//! | module | what |
//! |---|---|
//! | [`serve`] | one agent from start to stop |
//! | [`driver`] | the main loop, woken by `alarm` and timed by [`clock`] |
//! | [`workers`] | the three tasks that talk to the database |
//! | [`realtime_state`] | what is followed, what is live, and what an event of Realtime means |
//! | [`log_limiter`], `summary` | events in the log, and one line a minute |
//! | [`snapshot`], [`metrics`], [`status_reason`] | the state, the same as metrics, and why a distribution is not on its curve |
//! | [`dashboard`] | what the dashboard shows, and the answers to its queries |
//! | [`watchdog`], [`notify`] | whether the agent makes progress, and the messages to systemd |
//! | [`doctor`] | the checks of database and Realtime |

mod alarm;
pub mod clock;
pub mod dashboard;
pub mod doctor;
pub mod driver;
pub mod log_limiter;
pub mod metrics;
pub mod notify;
pub mod realtime_state;
pub mod serve;
pub mod snapshot;
pub mod status_reason;
mod summary;
pub mod watchdog;
pub mod workers;
