//! The pace at which visits are really stored, of the rows of a look.

use super::table::{Look, Measured};
use crate::domain::rate_estimate;

/// What was seen of each row; its course is its status and its pace.
#[derive(Default)]
pub struct RateEstimator(rate_estimate::RateEstimator<(String, Option<String>)>);

impl RateEstimator {
    /// Takes a look in; returns visits per second by row, for those seen twice on one course.
    pub fn take(&mut self, look: &Look) -> Measured {
        let rows = look.rows.iter().map(|row| {
            let course = (row.status.clone(), row.pace.clone());
            (row.id, course, row.distributed.unwrap_or(0))
        });
        self.0.take(look.at.into(), rows)
    }
}
