//! A `timestamptz` as the wire has it, without a detour through text or a calendar.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Postgres, Type};

use crate::domain::time::DbTime;

/// 2000-01-01, in microseconds since the Unix epoch.
const YEAR_2000_US: i64 = 946_684_800_000_000;

/// A column of type `timestamptz`; an infinity is a moment that no clock reaches.
///
/// Source: PostgreSQL, `timestamptz_send`: microseconds since 2000-01-01 in 64 bits, `infinity` and `-infinity` their ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment(pub DbTime);

impl Moment {
    /// What so many microseconds since 2000-01-01 stand for.
    pub const fn from_wire(since_2000: i64) -> DbTime {
        DbTime::from_micros(since_2000.saturating_add(YEAR_2000_US))
    }
}

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("TIMESTAMPTZ")
    }
}

impl Decode<'_, Postgres> for Moment {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if value.format() == PgValueFormat::Text {
            return Err("a moment came as text, where the binary format was asked for".into());
        }
        let since_2000 = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        Ok(Self(Self::from_wire(since_2000)))
    }
}
