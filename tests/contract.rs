//! What users see and every release keeps: one file a promise.

mod edits;
mod exactly_once;
mod pace;
mod pause;
