//! All SQL in the program. Nothing here decides anything: it runs statements and says what came of them.
//!
//! [`connection`] is one connection, [`link`] one that comes back; [`fault`] says what an error means; [`rows`] reads, and [`scan`] a large table ([`moment`]s as the wire has them), [`batches`] writes,
//! [`chores`] does the keeper's work, [`migrations`] brings the schema, [`admin`] and [`by_hand`] serve
//! the command line, [`doctor`] looks at everything that can be wrong with a database.

pub mod admin;
pub mod batches;
pub mod by_hand;
pub mod chores;
pub mod connection;
pub mod doctor;
pub mod fault;
pub mod link;
pub mod migrations;
pub mod moment;
pub mod rows;
pub mod scan;
pub mod series;
