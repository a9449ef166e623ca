//! The same formula in SQL and in Rust, held against each other over random rows, edits and times; and the same rules of
//! what is valid.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use uuid::Uuid;
use visit_pacer::domain::curve::Curve;
use visit_pacer::domain::distribution::{Distribution, RawRow};
use visit_pacer::domain::time::DbTime;

use crate::harness::server;

/// Rows, and edits of each.
const ROWS: usize = 2_000;
const EDITS: usize = 4;
/// 2026-01-01, in microseconds since the Unix epoch.
const EPOCH_US: i64 = 1_767_225_600_000_000;
const DAY_US: i64 = 86_400_000_000;

/// What SQL says of a row at a moment, beside what it was computed from.
const COMPUTED: &str = "
  select rate, unit, total, starts, ends, active, anchor_units, anchor_at, at,
         public.visit_pacer_curve(anchor_units::numeric, to_timestamp(0) + anchor_at * interval '1 microsecond', active, total,
           rate::numeric, unit, to_timestamp(0) + starts * interval '1 microsecond',
           to_timestamp(0) + ends * interval '1 microsecond', to_timestamp(0) + at * interval '1 microsecond')::text as units
    from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::boolean[], $7::text[], $8::bigint[], $9::bigint[])
      as r (rate, unit, total, starts, ends, active, anchor_units, anchor_at, at)";

/// Parallel arrays, one element a row.
#[derive(Default)]
struct Rows {
    rates: Vec<String>,
    units: Vec<&'static str>,
    totals: Vec<i64>,
    starts: Vec<Option<i64>>,
    ends: Vec<Option<i64>>,
    active: Vec<Option<bool>>,
    anchor_units: Vec<String>,
    anchor_at: Vec<i64>,
    at: Vec<i64>,
}

impl Rows {
    fn random(random: &mut StdRng, anchors: &[String]) -> Self {
        let mut rows = Self::default();
        for anchor in anchors {
            rows.rates.push(rate(random));
            rows.units
                .push(["second", "minute", "hour", "day"][random.random_range(0..4)]);
            rows.totals.push(
                [
                    random.random_range(0..1_000),
                    random.random_range(0..=10_i64.pow(15)),
                ][random.random_range(0..2)],
            );
            let start = EPOCH_US + random.random_range(-30 * DAY_US..30 * DAY_US);
            rows.starts.push(random.random_bool(0.95).then_some(start));
            rows.ends.push(
                random
                    .random_bool(0.6)
                    .then(|| start + random.random_range(1..40 * DAY_US)),
            );
            rows.active.push(
                [Some(true), Some(true), Some(true), Some(false), None][random.random_range(0..5)],
            );
            rows.anchor_units.push(anchor.clone());
            rows.anchor_at
                .push(start + random.random_range(0..10 * DAY_US));
            rows.at
                .push(start + random.random_range(-DAY_US..50 * DAY_US));
        }
        rows
    }

    fn row(&self, n: usize) -> RawRow {
        RawRow {
            id: Uuid::from_u128(1),
            partner_id: Some(Uuid::from_u128(2).into()),
            config_version: Some(1),
            is_active: self.active[n],
            total_visits: Some(self.totals[n].to_string().into()),
            visits_per_unit: Some(self.rates[n].as_str().into()),
            time_period: Some(self.units[n].into()),
            start_time: self.starts[n].map(DbTime::from_micros),
            end_time: self.ends[n].map(DbTime::from_micros),
            catch_up: None,
            anchor_units: Some(self.anchor_units[n].as_str().into()),
            anchor_at: Some(DbTime::from_micros(self.anchor_at[n])),
        }
    }
}

/// A rate of any size that is valid for every unit, with up to nine decimals.
fn rate(random: &mut StdRng) -> String {
    let whole = match random.random_range(0..3) {
        0 => 0,
        1 => random.random_range(0..100),
        _ => random.random_range(0..1_000_000),
    };
    let decimals = random.random_range(0..=9_usize);
    let fraction: String = (0..decimals)
        .map(|_| char::from(b'0' + random.random_range(0..10_u8)))
        .collect();
    if fraction.is_empty() {
        whole.to_string()
    } else {
        format!("{whole}.{fraction}")
    }
}

/// A curve's units of a billionth of SQL's, as SQL writes its own.
fn as_sql_writes(units: i128) -> String {
    visit_pacer::domain::decimal::format_scaled(units, 9)
}

async fn connection() -> PgConnection {
    let url = server::shared().migrated().await;
    PgConnection::connect(&url).await.expect("a connection")
}

#[tokio::test]
async fn rust_and_sql_agree_on_random_rows_edits_and_times_to_the_last_unit() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut connection = connection().await;
    let mut anchors = vec!["0".to_owned(); ROWS];
    for _ in 0..EDITS {
        let rows = Rows::random(&mut random, &anchors);
        let computed = sqlx::query(AssertSqlSafe(format!(
            "with computed as ({COMPUTED}) select units, public.visit_pacer_due(units::numeric, total) as due from computed"
        )))
        .bind(&rows.rates)
        .bind(&rows.units)
        .bind(&rows.totals)
        .bind(&rows.starts)
        .bind(&rows.ends)
        .bind(&rows.active)
        .bind(&rows.anchor_units)
        .bind(&rows.anchor_at)
        .bind(&rows.at)
        .fetch_all(&mut connection)
        .await
        .expect("SQL computes");
        assert_eq!(computed.len(), ROWS);
        for (n, found) in computed.iter().enumerate() {
            let row = rows.row(n);
            let curve: Curve = Distribution::parse(&row).expect("valid").curve;
            let at = DbTime::from_micros(rows.at[n]);
            let (units, due): (String, i64) = (found.get("units"), found.get("due"));
            let ours =
                visit_pacer::domain::decimal::parse_scaled(&units, 9).expect("a finite decimal");
            assert_eq!(curve.units(at), ours, "{row:?} at {}", rows.at[n]);
            assert_eq!(curve.due(at), due, "{row:?} at {}", rows.at[n]);
            // The next edit's anchor, as the trigger would take it over.
            anchors[n] = as_sql_writes(curve.units(at));
        }
    }
}

/// Texts that a user may have brought into a row, and that must be judged alike.
const NUMBERS: &[Option<&str>] = &[
    None,
    Some("0"),
    Some("1"),
    Some("-1"),
    Some("-0"),
    Some("0.5"),
    Some("33.33"),
    Some("6250.00"),
    Some("0.000000001"),
    Some("0.0000000001"),
    Some("1.0000000000000"),
    Some("NaN"),
    Some("Infinity"),
    Some("-Infinity"),
    Some("1000000"),
    Some("1000000.000000001"),
    Some("60000000"),
    Some("60000000.1"),
    Some("3600000000"),
    Some("86400000000"),
    Some("86400000001"),
    Some("1000000000000000"),
    Some("1000000000000001"),
    Some("1e15"),
    Some("99999999999999999999999999999999999999999999"),
    Some("0.00000000000000000000000000000000000000000000000000001"),
];
const PERIODS: &[Option<&str>] = &[
    None,
    Some("second"),
    Some("minute"),
    Some("hour"),
    Some("day"),
    Some("Minute"),
    Some(" minute"),
    Some("week"),
    Some(""),
];
const MOMENTS: &[Option<&str>] = &[
    None,
    Some("infinity"),
    Some("-infinity"),
    Some("1999-12-31 23:59:59.999999+00"),
    Some("2000-01-01 00:00:00+00"),
    Some("2026-06-01 12:00:00+02"),
    Some("2026-06-01 10:00:00.000001+00"),
    Some("2199-12-31 23:59:59.999999+00"),
    Some("2200-01-01 00:00:00+00"),
];

/// Each value against a harmless rest, and windows of each two moments, with what SQL says of them.
const JUDGED: &str = "
  with numbers as (select unnest($1::numeric[]) as n), periods as (select unnest($2::text[]) as p),
       moments as (select unnest($3::timestamptz[]) as m), harmless as (select timestamptz '2026-01-01 00:00:00+00' as since), rows as (
    select 100::numeric as total, n as rate, p as period, since as starts, null::timestamptz as ends, null::numeric as catch_up
      from numbers, periods, harmless
    union all select n, 1, 'second', since, null, null from numbers, harmless
    union all select 100, 1, 'second', a.m, b.m, null from moments a, moments b
    union all select 100, 1, 'second', since, null, n from numbers, harmless
    union all select 100, 1, 'second', since, null, c
      from harmless, unnest(array[1, 1.0, 0.999, 1.234, 1.2345, 999.999, 1000, 1000.001]) c)
  select total::text, rate::text, period, catch_up::text,
         starts, ends,
         public.visit_pacer_reason_text(public.visit_pacer_invalid(total, rate, period, starts, ends, catch_up)) as invalid
    from rows";

fn judged_row(found: &PgRow) -> RawRow {
    let moment = |column| found.get::<Option<DbTime>, _>(column);
    let text = |column| found.get::<Option<&str>, _>(column).map(Into::into);
    RawRow {
        id: Uuid::from_u128(1),
        partner_id: Some(Uuid::from_u128(2).into()),
        config_version: Some(1),
        is_active: Some(true),
        total_visits: text("total"),
        visits_per_unit: text("rate"),
        time_period: text("period"),
        start_time: moment("starts"),
        end_time: moment("ends"),
        catch_up: text("catch_up"),
        anchor_units: Some("0".into()),
        anchor_at: Some(DbTime::from_micros(EPOCH_US)),
    }
}

#[tokio::test]
async fn rust_and_sql_agree_on_what_is_valid_over_a_table_of_nasty_values() {
    let mut connection = connection().await;
    let judged = sqlx::query(JUDGED)
        .bind(NUMBERS)
        .bind(PERIODS)
        .bind(MOMENTS)
        .fetch_all(&mut connection)
        .await
        .expect("SQL judges");
    let (mut valid, mut invalid) = (0, 0);
    for found in &judged {
        let row = judged_row(found);
        let sql: Option<String> = found.get("invalid");
        let rust = Distribution::parse(&row).err().map(|why| why.to_string());
        let column = |why: &Option<String>| {
            why.as_ref()
                .and_then(|why| why.split(' ').next())
                .map(str::to_owned)
        };
        assert_eq!(
            column(&rust),
            column(&sql),
            "SQL: {sql:?}, Rust: {rust:?}, of {row:?}"
        );
        if sql.is_some() {
            invalid += 1;
        } else {
            valid += 1;
        }
    }
    assert!(
        valid > 50 && invalid > 200,
        "{valid} valid, {invalid} invalid"
    );
}

#[tokio::test]
async fn a_thousand_edits_of_one_row_lose_not_a_single_unit() {
    let mut connection = connection().await;
    let id: Uuid = sqlx::query_scalar(
        "with partner as (insert into partners default values returning id)
         insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
         select id, 1000000, 'day', 86400, now() from partner returning id",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a row");
    // The same pace in other words, and the same total but for one: each edit re-anchors, and the curve stays.
    sqlx::raw_sql(AssertSqlSafe(format!(
        "do $$ begin for n in 1..1000 loop
           update visit_distribution set time_period = (array['second', 'minute', 'hour', 'day'])[1 + n % 4],
             visits_per_unit = (array[1, 60, 3600, 86400])[1 + n % 4], total_visits = 1000000 + n where id = '{id}';
         end loop; end $$"
    )))
    .execute(&mut connection)
    .await
    .expect("edits");
    let (exact, moved): (bool, bool) = sqlx::query_as(
        "select anchor_units = 86400 * extract(epoch from anchor_at - start_time) * 1000000, anchor_units > 0
           from visit_distribution where id = $1",
    )
    .bind(id)
    .fetch_one(&mut connection)
    .await
    .expect("the row");
    assert!(moved, "the edits took some time");
    assert!(
        exact,
        "one visit a second from the start, whatever was edited since"
    );
}
