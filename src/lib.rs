//! visit-pacer: an agent beside Supabase that stores planned visits at an exact pace, driven by edits of one table.
//!
//! **Data flow.** Text arrives on the Realtime socket; [`realtime::frame`] decodes it, [`realtime::session`] decides what
//! it means. News is only "row X changed, version v". The row is read from the database, parsed to a
//! [`domain::distribution::Distribution`], and applied to the [`domain::schedule::Schedule`] if its version differs:
//! one way in, whoever asked for the read (an event, a refused batch, the periodic sync). When the database's clock passes
//! the next deadline, the timetable says what is due, the bucket how much of it may go, and the batch leaves the writer
//! nothing to decide. Its answer comes back as an input, and moves progress forward. A crash anywhere costs nothing: the
//! next start reads progress from the database, and compare-and-set and the unique visit number make repeats harmless.
//!
//! **Layers**, arrows point down only: [`cli`] and [`demo`] → [`runtime`] → the adapters [`realtime`], [`postgres`], [`web`],
//! [`observe`] → [`domain`]. Adapters never import one another. Everything is decided in [`domain::agent`]; only
//! [`runtime`] and the tasks of adapters read clocks, sleep or spawn.
//!
//! **Words** are those of the README: distribution, visit, curve, due, backlog, batch, DB time.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::as_conversions,
        clippy::wildcard_enum_match_arm,
        clippy::disallowed_methods,
        let_underscore_drop,
        reason = "a test may panic: that is how it fails"
    )
)]

pub mod bench;
pub mod cli;
pub mod demo;
pub mod domain;
pub mod observe;
pub mod postgres;
pub mod realtime;
pub mod runtime;
pub mod settings;
pub mod web;
