//! One file a parser that outside input reaches: a function of bytes that may assert more than that nothing panics.
//!
//! Each is used twice: by `../fuzz.rs` over the corpus and its mutations, and by cargo-fuzz (`fuzz_targets/`).

pub mod change;
pub mod frame;
pub mod http;
pub mod pgoutput;
pub mod row;
pub mod session;
pub mod settings;
