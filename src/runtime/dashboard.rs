//! What the dashboard shows and edits: [`snapshot`] has all distributions, [`view`] the JSON of one, [`queries`] the tasks that
//! answer the pages.

pub mod queries;
pub mod snapshot;
mod view;
