//! All SQL of the program. Nothing here decides anything: it runs statements and returns their results.
//!
//! [`connection`] is one connection, [`reconnect`] one that reconnects, [`failure`] classifies errors, [`time`] is the encoding of
//! timestamps. [`rows`] reads distributions, [`scan`] a large table of them, [`batches`] stores visits, [`maintenance`] has the
//! agent's other statements. [`migrations`] holds the schema. [`status`], [`series`] and [`sql_functions`] serve the command line
//! and the dashboard, [`doctor`] checks a database.

pub mod batches;
pub mod connection;
pub mod doctor;
pub mod failure;
pub mod maintenance;
pub mod migrations;
pub mod reconnect;
pub mod rows;
pub mod scan;
pub mod series;
pub mod sql_functions;
pub mod status;
pub mod time;
