//! The pure core: what is due, when, and what to do about everything that happens. No clock, socket, file or SQL here;
//! time, randomness and the outside world arrive as parameters.
//!
//! Read in this order: [`distribution`] (a row, parsed once), [`curve`] (the exact number of visits that should exist),
//! [`bucket`] (how fast a backlog drains), [`schedule`] (which row fires when, and the batch), [`ownership`] (whose rows they
//! are, where several agents run), [`visit_times`] and [`visit`]
//! (what a visit looks like), [`agent`] (the state machine over all of it). Beside it: [`plan`] (a row before it runs) and
//! [`finding`] (what `doctor` has to say).

pub mod agent;
pub mod batch;
pub mod bucket;
pub mod clock;
pub mod curve;
pub mod decimal;
pub mod distribution;
pub mod echo_check;
pub mod error_policy;
pub mod event;
pub mod finding;
#[cfg(test)]
pub mod fixture;
pub mod history;
pub mod limits;
pub mod ownership;
pub mod partner;
pub mod plan;
pub mod rate_estimate;
pub mod retry;
pub mod schedule;
pub mod secret;
pub mod time;
pub mod transport;
pub mod visit;
pub mod visit_times;
pub mod write_back;
