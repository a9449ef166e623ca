//! A row as the database gives it, its values as text: one that can be paced has a curve that never falls and stays below
//! its total, and a bucket that holds no more than it can.

use compact_str::CompactString;
use uuid::Uuid;
use visit_pacer::domain::bucket::{Bucket, BucketRule};
use visit_pacer::domain::decimal::{format_scaled, parse_scaled};
use visit_pacer::domain::distribution::{Distribution, RawRow};
use visit_pacer::domain::time::DbTime;
use visit_pacer::domain::visit_times::{Span, visited_at};

/// Decimals that the program reads: of whole numbers, `catch_up`, rates and levels.
const SCALES: [u32; 4] = [0, 3, 9, 12];
/// 2000-01-01 and 2200-01-01, between which the database's clock is: microseconds since the Unix epoch.
const FIRST_US: i64 = 946_684_800_000_000;
const LAST_US: i64 = 7_258_118_400_000_000;
/// Moments at which a curve is looked at.
const LOOKS: i64 = 8;
/// Visits in one batch.
const VISITS: i64 = 5;

/// One line a column; `-` is a null.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for (value, decimals) in text
        .lines()
        .flat_map(|line| SCALES.map(|scale| (line, scale)))
    {
        if let Ok(scaled) = parse_scaled(value, decimals) {
            assert_eq!(
                parse_scaled(&format_scaled(scaled, decimals), decimals),
                Ok(scaled)
            );
        }
    }
    let mut lines = text.lines();
    let mut column = || {
        lines
            .next()
            .filter(|line| *line != "-")
            .map(CompactString::from)
    };
    let moment = |text: Option<CompactString>| text?.parse().ok().map(DbTime::from_micros);
    let row = RawRow {
        id: Uuid::nil(),
        partner_id: Some(Uuid::nil().into()),
        config_version: Some(1),
        total_visits: column(),
        visits_per_unit: column(),
        time_period: column(),
        start_time: moment(column()),
        end_time: moment(column()),
        catch_up: column(),
        anchor_units: column(),
        anchor_at: moment(column()),
        is_active: column().map(|active| active == "t"),
    };
    let (units, at, last) = (column(), column(), column());
    if let Ok(parsed) = Distribution::parse(&row) {
        follow(
            &parsed,
            &Bucket::from_columns(units.as_deref(), moment(at)),
            moment(last),
        );
    }
}

fn follow(row: &Distribution, bucket: &Bucket, last: Option<DbTime>) {
    let rule = BucketRule::new(row.slope, row.catch_up_milli.unwrap_or(2_000));
    let full = Bucket::default();
    let step = (LAST_US - FIRST_US) / LOOKS;
    let mut before = i64::MIN;
    for look in 0..=LOOKS {
        let now = DbTime::from_micros(FIRST_US + look * step);
        let due = row.curve.due(now);
        assert!(due >= before, "a curve never falls");
        assert!(due <= row.curve.total, "nothing is due beyond the total");
        before = due;
        assert!(bucket.holds(&rule, now) <= full.holds(&rule, now));
        let taken = bucket.taken(&rule, VISITS, now);
        assert!(taken.holds(&rule, now) <= full.holds(&rule, now));
        let kept = Bucket::from_columns(taken.units_column().as_deref(), taken.at_column());
        assert_eq!(kept, taken, "a level survives the database exactly");
        let first = (due - VISITS).max(1);
        let visit_times = visited_at(&row.curve, first, VISITS, Span::of(&row.curve, last, now));
        assert!(visit_times.is_sorted(), "visits are dated in their order");
        let cut = row.curve.to.map_or(now, |end| end.min(now));
        if last.is_none_or(|last| last <= cut) {
            let late = visit_times.iter().any(|moment| *moment > cut);
            assert!(!late, "no visit is in the future or after the end");
        }
    }
    for k in [1, 2, row.curve.total] {
        if let Some(at) = row.curve.due_at(k) {
            assert!(
                row.curve.due(at) >= k,
                "a visit is due when it is said to be"
            );
        }
    }
}
