//! A row of `visit_distribution`, parsed and validated once. A row that cannot be paced does not construct, and says why.
//!
//! The rules are those of `visit_pacer_invalid()` in the migrations; a test holds the two against each other.

use std::str::FromStr;

use compact_str::CompactString;
use thiserror::Error;
use uuid::Uuid;

use super::curve::{Curve, VISIT};
use super::decimal::{DecimalError, parse_scaled};
use super::partner::PartnerId;
use super::time::DbTime;

/// Decimals of `visits_per_unit`.
pub const RATE_DECIMALS: u32 = 9;
/// Decimals of `catch_up`.
const CATCH_UP_DECIMALS: u32 = 3;
/// The greatest rate, in visits a second.
pub const MAX_VISITS_PER_SECOND: i128 = 1_000_000;
/// The greatest `total_visits`.
const MAX_TOTAL: i128 = 1_000_000_000_000_000;
/// 2000-01-01 and 2200-01-01, in microseconds since the Unix epoch.
const YEAR_2000_US: i64 = 946_684_800_000_000;
const YEAR_2200_US: i64 = 7_258_118_400_000_000;

/// A row as the database gives it: values that a user may have made anything of are text,
/// which is short in all but bad rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawRow {
    /// `id`
    pub id: Uuid,
    /// `partner_id`
    pub partner_id: Option<PartnerId>,
    /// `config_version`; null where no trigger has seen the row.
    pub config_version: Option<i64>,
    /// `is_active`
    pub is_active: Option<bool>,
    /// `total_visits`, as text.
    pub total_visits: Option<CompactString>,
    /// `visits_per_unit`, as text.
    pub visits_per_unit: Option<CompactString>,
    /// `time_period`
    pub time_period: Option<CompactString>,
    /// `start_time`; an infinity is a moment out of range.
    pub start_time: Option<DbTime>,
    /// `end_time`, likewise.
    pub end_time: Option<DbTime>,
    /// `catch_up`, as text.
    pub catch_up: Option<CompactString>,
    /// `anchor_units`, as text.
    pub anchor_units: Option<CompactString>,
    /// `anchor_at`
    pub anchor_at: Option<DbTime>,
}

/// So many visits, at such a rate, in such a window, for a partner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Distribution {
    /// `id`
    pub id: Uuid,
    /// `partner_id`
    pub partner_id: PartnerId,
    /// `config_version`: moves with every edit that matters to the pace.
    pub version: i64,
    /// Whether it is running; a null is not.
    pub active: bool,
    /// Units per microsecond while it is running: see [`Curve`].
    pub slope: i128,
    /// `time_period`
    pub period: Period,
    /// `start_time`
    pub start: Option<DbTime>,
    /// The curve, flat where the row is not active.
    pub curve: Curve,
    /// Thousandths; `None`: the control row's.
    pub catch_up_milli: Option<i64>,
}

/// `time_period`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Period {
    /// `second`
    Second,
    /// `minute`
    Minute,
    /// `hour`
    Hour,
    /// `day`
    Day,
}

impl Period {
    /// All of them, the shortest first.
    pub const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    /// As the column has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Its length, in seconds.
    pub const fn seconds(self) -> i128 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

/// A text that is no `time_period`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("use second, minute, hour or day")]
pub struct UnknownPeriod;

impl FromStr for Period {
    type Err = UnknownPeriod;

    fn from_str(text: &str) -> Result<Self, UnknownPeriod> {
        let mut all = Self::ALL.into_iter();
        all.find(|period| period.as_str() == text)
            .ok_or(UnknownPeriod)
    }
}

/// Why a row cannot be paced.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unpaced {
    /// A value of it is bad: what was found, what to use.
    #[error("{0}")]
    Invalid(String),
    /// Nothing is wrong with it, but no trigger has seen it: the next sync has it anchored.
    #[error("not anchored yet; the next sync anchors it")]
    NotAnchored,
}

impl Distribution {
    /// Parses a row.
    pub fn parse(row: &RawRow) -> Result<Self, Unpaced> {
        let total = parse_total(row.total_visits.as_deref())?;
        let (slope, period) =
            parse_slope(row.visits_per_unit.as_deref(), row.time_period.as_deref())?;
        let start = in_range("start_time", row.start_time)?;
        let end = in_range("end_time", row.end_time)?;
        if let (Some(start), Some(end)) = (start, end)
            && end <= start
        {
            return Err(Unpaced::Invalid(
                "end_time is not after start_time; move one of the two".to_owned(),
            ));
        }
        let catch_up_milli = parse_catch_up(row.catch_up.as_deref())?;
        let partner_id = row
            .partner_id
            .clone()
            .ok_or_else(|| Unpaced::Invalid("partner_id is null; name the partner".to_owned()))?;
        let version = row.config_version.ok_or(Unpaced::NotAnchored)?;
        let anchor = parse_anchor(row.anchor_units.as_deref())?;
        let anchor_at = row.anchor_at.ok_or(Unpaced::NotAnchored)?;
        let active = row.is_active.unwrap_or(false);
        let curve = Curve {
            anchor,
            slope: if active { slope } else { 0 },
            from: start.map(|start| start.max(anchor_at)),
            to: end,
            total,
        };
        Ok(Self {
            id: row.id,
            partner_id,
            version,
            active,
            slope,
            period,
            start,
            curve,
            catch_up_milli,
        })
    }

    /// Whether its window has been over for so long that what is still owed is not stored any more.
    pub fn given_up(&self, give_up_after_us: i64, now: DbTime) -> bool {
        self.curve
            .to
            .is_some_and(|to| to.plus_micros(give_up_after_us) <= now)
    }
}

fn parse_total(text: Option<&str>) -> Result<i64, Unpaced> {
    let wanted = "use a whole number of visits, 0 or more";
    let text = text.ok_or_else(|| Unpaced::Invalid(format!("total_visits is null; {wanted}")))?;
    let too_many = || {
        Unpaced::Invalid(format!(
            "total_visits is {text}; use at most 1000000000000000 (10^15)"
        ))
    };
    match parse_scaled(text, 0) {
        Ok(total) if total < 0 => Err(Unpaced::Invalid(format!(
            "total_visits is {text}; {wanted}"
        ))),
        Ok(total) if total > MAX_TOTAL => Err(too_many()),
        Ok(total) => i64::try_from(total).map_err(|_| too_many()),
        Err(DecimalError::TooLarge) => Err(too_many()),
        Err(DecimalError::NotFinite | DecimalError::TooManyDecimals) => Err(Unpaced::Invalid(
            format!("total_visits is {text}; {wanted}"),
        )),
    }
}

/// Units per microsecond: `visits_per_unit × 86400 / unit`, in billionths.
fn parse_slope(rate: Option<&str>, period: Option<&str>) -> Result<(i128, Period), Unpaced> {
    let found = || period.map_or_else(|| "null".to_owned(), |period| format!("'{period}'"));
    let period = period.and_then(|period| period.parse().ok());
    let period: Period = period.ok_or_else(|| {
        let found = found();
        Unpaced::Invalid(format!(
            "time_period is {found}; use 'second', 'minute', 'hour' or 'day'"
        ))
    })?;
    let wanted = "use a number of visits, 0 or more";
    let text =
        rate.ok_or_else(|| Unpaced::Invalid(format!("visits_per_unit is null; {wanted}")))?;
    let too_fast = || {
        Unpaced::Invalid(format!(
            "visits_per_unit is {text}; use at most 1000000 visits a second"
        ))
    };
    let nano = match parse_scaled(text, RATE_DECIMALS) {
        Ok(nano) if nano >= 0 => nano,
        Ok(_) | Err(DecimalError::NotFinite) => {
            return Err(Unpaced::Invalid(format!(
                "visits_per_unit is {text}; {wanted}"
            )));
        }
        Err(DecimalError::TooManyDecimals) => {
            return Err(Unpaced::Invalid(format!(
                "visits_per_unit is {text}; use at most 9 decimals"
            )));
        }
        Err(DecimalError::TooLarge) => return Err(too_fast()),
    };
    if nano > MAX_VISITS_PER_SECOND * period.seconds() * 1_000_000_000 {
        return Err(too_fast());
    }
    Ok((nano * (86_400 / period.seconds()), period))
}

fn in_range(column: &str, moment: Option<DbTime>) -> Result<Option<DbTime>, Unpaced> {
    match moment {
        Some(at) if !(YEAR_2000_US..YEAR_2200_US).contains(&at.as_micros()) => {
            Err(Unpaced::Invalid(format!(
                "{column} is out of range; use a time between the years 2000 and 2200"
            )))
        }
        there_or_not => Ok(there_or_not),
    }
}

/// Parses a curve's beginning. No trigger writes one that no total can reach; in a row that has one all the same, beyond
/// this bound the curve would not fit into 128 bits.
fn parse_anchor(text: Option<&str>) -> Result<i128, Unpaced> {
    let text = text.ok_or(Unpaced::NotAnchored)?;
    parse_scaled(text, RATE_DECIMALS)
        .ok()
        .filter(|anchor| (0..=MAX_TOTAL * VISIT).contains(anchor))
        .ok_or_else(|| {
            Unpaced::Invalid(format!(
                "anchor_units is {text}, where the trigger writes a curve from 0 up; delete the row and insert it again"
            ))
        })
}

/// Parses a `catch_up` into thousandths; `None` stays `None`.
fn parse_catch_up(text: Option<&str>) -> Result<Option<i64>, Unpaced> {
    let Some(text) = text else { return Ok(None) };
    parse_scaled(text, CATCH_UP_DECIMALS)
        .ok()
        .and_then(|milli| i64::try_from(milli).ok())
        .filter(|milli| (1_000..=1_000_000).contains(milli))
        .map(Some)
        .ok_or_else(|| {
            Unpaced::Invalid(format!(
                "catch_up is {text}; use a number from 1 to 1000 with at most 3 decimals"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fixture::{T0, raw_row};

    /// Six hundred visits in ten seconds.
    fn row() -> RawRow {
        RawRow {
            config_version: Some(7),
            total_visits: Some("600".into()),
            time_period: Some("minute".into()),
            end_time: Some(DbTime::from_micros(T0 + 10_000_000)),
            ..raw_row(1, "3600")
        }
    }

    fn why(change: impl FnOnce(&mut RawRow)) -> String {
        let mut row = row();
        change(&mut row);
        Distribution::parse(&row)
            .expect_err("the row is bad")
            .to_string()
    }

    #[test]
    fn a_good_row_is_a_curve() {
        let parsed = Distribution::parse(&row()).expect("valid");
        assert_eq!(
            parsed.curve.due(DbTime::from_micros(1_800_000_010_000_000)),
            600
        );
    }

    #[test]
    fn each_bad_value_says_what_was_found_and_what_to_use() {
        assert!(
            why(|r| r.total_visits = Some("NaN".into()))
                .starts_with("total_visits is NaN; use a whole number")
        );
        assert!(why(|r| r.total_visits = Some("-1".into())).contains("is -1"));
        assert!(why(|r| r.total_visits = None).contains("null"));
        assert!(why(|r| r.total_visits = Some("1000000000000001".into())).contains("10^15"));
        assert!(why(|r| r.visits_per_unit = Some("Infinity".into())).contains("0 or more"));
        assert!(why(|r| r.visits_per_unit = Some("0.0000000001".into())).contains("9 decimals"));
        assert!(
            why(|r| r.visits_per_unit = Some("60000001".into()))
                .contains("at most 1000000 visits a second")
        );
        assert!(
            why(|r| r.time_period = Some("week".into()))
                .contains("'second', 'minute', 'hour' or 'day'")
        );
        assert!(why(|r| r.start_time = Some(DbTime::from_micros(i64::MAX))).contains("start_time"));
        assert!(why(|r| r.end_time = r.start_time).contains("not after start_time"));
        assert!(why(|r| r.catch_up = Some("0.5".into())).contains("from 1 to 1000"));
        assert!(why(|r| r.config_version = None).contains("next sync"));
        assert!(why(|r| r.anchor_units = None).contains("next sync"));
        for anchor in ["-1", "NaN", "86400000000000000000000000.000000001"] {
            let words = why(|r| r.anchor_units = Some(anchor.into()));
            assert!(words.contains("insert it again"), "{words}");
        }
    }

    #[test]
    fn a_rate_or_a_total_of_zero_is_valid_a_null_start_never_starts_and_a_null_is_active_is_inactive()
     {
        let mut still = row();
        still.visits_per_unit = Some("0".into());
        still.total_visits = Some("0".into());
        assert!(Distribution::parse(&still).is_ok());
        let mut never = row();
        never.start_time = None;
        let parsed = Distribution::parse(&never).expect("valid");
        assert_eq!(parsed.curve.due(DbTime::from_micros(i64::MAX)), 0);
        let mut unset = row();
        unset.is_active = None;
        assert!(!Distribution::parse(&unset).expect("valid").active);
    }
}
