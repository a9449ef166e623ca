//! All SQL in the program. Nothing here decides anything: it runs statements and says what came of them.
//!
//! [`connection`] is one connection, [`link`] one that comes back; [`failure`] says what an error means; [`rows`] reads, and [`scan`] a large table ([`moment`]s as the wire has them), [`batches`] writes,
//! [`maintenance`] does the keeper's work, [`migrations`] brings the schema, [`admin`] and [`sql_functions`] serve
//! the command line, [`doctor`] looks at everything that can be wrong with a database.

pub mod batches;
pub mod connection;
pub mod doctor;
pub mod failure;
pub mod maintenance;
pub mod migrations;
pub mod moment;
pub mod reconnect;
pub mod rows;
pub mod scan;
pub mod series;
pub mod sql_functions;
pub mod status;
