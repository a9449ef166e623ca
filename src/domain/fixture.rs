//! Distributions for unit tests, as the database returns them.

use uuid::Uuid;

use super::batch::Progress;
use super::distribution::RawRow;
use super::schedule::RowRead;
use super::time::DbTime;

/// The time at which the distributions start: a full second.
pub const T0: i64 = 1_800_000_000_000_000;

/// The id of the n-th distribution.
pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// That many visits a second from [`T0`] on, a million in total, without end, of version 1.
pub fn raw_row(n: u128, per_second: &str) -> RawRow {
    RawRow {
        id: id(n),
        partner_id: Some(id(1_000_000).into()),
        config_version: Some(1),
        is_active: Some(true),
        total_visits: Some("1000000".into()),
        visits_per_unit: Some(per_second.into()),
        time_period: Some("second".into()),
        start_time: Some(DbTime::from_micros(T0)),
        end_time: None,
        catch_up: None,
        anchor_units: Some("0".into()),
        anchor_at: Some(DbTime::from_micros(T0)),
    }
}

/// The same with its progress, as it is read.
pub fn row(n: u128, per_second: &str) -> RowRead {
    RowRead {
        row: raw_row(n, per_second),
        progress: Some(Progress::default()),
        written: Some(0),
    }
}
