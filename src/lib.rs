//! visit-pacer: an agent beside Supabase that stores planned visits at an exact rate, driven by edits of one table.
//!
//! **Data flow.** [`realtime::frame`] decodes the text of the websocket, [`realtime::session`] speaks the protocol. An event only
//! says that a row changed: the agent reads the row from the database, parses it to a [`domain::distribution::Distribution`] and
//! applies it to the [`domain::schedule::Schedule`] if its version differs. This is the only way into the schedule, whether an
//! event, a refused batch or the periodic sync asked for the read. When a distribution fires, the schedule computes how many
//! visits are due, the token bucket how many of them may be stored, and a batch carries them to the writer. The result advances
//! the schedule's progress. After a crash, the next start reads progress from the database; compare-and-set and the unique visit
//! number make repeated batches harmless.
//!
//! **Layers.** Imports go to the right only: [`cli`], `demo`, `bench` → [`runtime`] → the adapters [`realtime`], [`postgres`],
//! [`web`], [`observe`] → [`domain`]. Adapters never import one another. [`domain::agent`] decides everything; only [`runtime`]
//! and the tasks of adapters read clocks, sleep or spawn. `deploy/ARCHITECTURE.md` has the map of the source.
//!
//! **Features** (both default): `demo` and `bench`, the subcommands of these names. An agent alone needs neither.

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

#[cfg(feature = "bench")]
pub mod bench;
pub mod cli;
#[cfg(feature = "demo")]
pub mod demo;
pub mod domain;
pub mod observe;
pub mod postgres;
pub mod realtime;
pub mod runtime;
pub mod settings;
pub mod svg;
pub mod web;
