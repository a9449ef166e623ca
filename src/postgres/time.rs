//! [`DbTime`] crosses the wire as `timestamptz` in the binary format, in both directions and nowhere in another encoding.
//!
//! Source: PostgreSQL, `timestamptz_send`: microseconds since 2000-01-01 as a 64-bit integer, whose extremes are `infinity` and
//! `-infinity`.

use chrono::{DateTime, Utc};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::domain::time::DbTime;

/// 2000-01-01 in microseconds since the Unix epoch.
const YEAR_2000_US: i64 = 946_684_800_000_000;

/// From the wire; an infinity becomes a time that no clock reaches.
pub(super) const fn from_wire(since_2000: i64) -> DbTime {
    DbTime::from_micros(since_2000.saturating_add(YEAR_2000_US))
}

const fn to_wire(at: DbTime) -> i64 {
    if at.as_micros() == from_wire(i64::MAX).as_micros() {
        return i64::MAX;
    }
    at.as_micros().saturating_sub(YEAR_2000_US)
}

impl Type<Postgres> for DbTime {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for DbTime {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if value.format() == PgValueFormat::Text {
            return Err("a timestamptz arrived as text instead of the binary format".into());
        }
        Ok(from_wire(i64::from_be_bytes(value.as_bytes()?.try_into()?)))
    }
}

impl Encode<'_, Postgres> for DbTime {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend(to_wire(*self).to_be_bytes());
        Ok(IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_the_wire_goes_back_as_it_was() {
        for since_2000 in [i64::MIN, -1, 0, 1, 850_000_000_000_000_000, i64::MAX] {
            assert_eq!(to_wire(from_wire(since_2000)), since_2000);
        }
    }
}
