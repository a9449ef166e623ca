//! What the dashboard shows: [`snapshot`] is all distributions as they stand, [`queries`] the task that answers the pages.

pub mod queries;
pub mod snapshot;
