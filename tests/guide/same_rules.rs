//! Where the SQL functions date a visit and what a row's bucket holds: held against the agent's rules over random cases.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::Row as _;
use visit_pacer::domain::bucket::{Bucket, BucketRule};
use visit_pacer::domain::curve::{Curve, VISIT};
use visit_pacer::domain::decimal::{format_scaled, parse_scaled};
use visit_pacer::domain::time::DbTime;
use visit_pacer::domain::visit_times::{Span, visited_at};

use super::Database;

const CASES: usize = 4_000;
const TOTAL: i64 = 1_000_000_000_000_000;
/// 2026-09-21, in microseconds since the Unix epoch.
const EPOCH_US: i64 = 1_790_000_000_000_000;
/// Decimals of the curve's units in SQL, and of a bucket's level.
const CURVE_DECIMALS: u32 = 9;
const LEVEL_DECIMALS: u32 = 12;

const MOMENTS: &str = "
  select array(select public.visit_pacer_micros(m.moment)::bigint
                 from public.visit_pacer_visit_times(c.slope::numeric, c.anchor::numeric, public.moment(c.from_at), public.moment(c.last_at),
                   public.moment(c.cut), c.first, c.visits, c.taken) m order by m.nth) as moments
    from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
      with ordinality as c (slope, anchor, from_at, last_at, cut, first, visits, taken, nth) order by c.nth";

const LEVELS: &str = "
  select public.visit_pacer_bucket_level(c.units::numeric, public.moment(c.at), c.slope::numeric, c.catch_up::numeric / 1000,
           public.moment(c.now_at))::text as level
    from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
      with ordinality as c (units, at, slope, catch_up, now_at, nth) order by c.nth";

/// A moment from microseconds since the Unix epoch, exactly.
const MOMENT: &str = "create function public.moment(micros bigint) returns timestamptz language sql immutable as
  $$ select timestamptz '2026-09-21 14:13:20+00' + (micros - 1790000000000000) * interval '1 microsecond' $$";

/// Billionths of a visit per unit that a user may have written, by the number of units in a day.
fn slope(random: &mut StdRng) -> i128 {
    let per_unit: i64 = match random.random_range(0..4) {
        0 => [0, 1, 500_000_000, 33_330_000_000, 6_250_000_000_000][random.random_range(0..5)],
        1 => random.random_range(0..100) * 1_000_000_000,
        2 => random.random_range(0..100_000_000_000),
        _ => random.random_range(0..1_000_000) * 1_000_000_000,
    };
    i128::from(per_unit) * [86_400, 1_440, 24, 1][random.random_range(0..4)]
}

fn anchor(random: &mut StdRng) -> i128 {
    match random.random_range(0..4) {
        0 => 0,
        1 => VISIT / 2 + VISIT * random.random_range(0..3),
        2 => VISIT * random.random_range(0..50),
        _ => random.random_range(0..50 * VISIT),
    }
}

/// A moment near another one: the same, just beside it, or up to so many seconds before and after.
fn near(random: &mut StdRng, at: i64, before_s: i64, after_s: i64) -> i64 {
    at + match random.random_range(0..4) {
        0 => 0,
        1 => random.random_range(-2..=2),
        _ => random.random_range(-before_s * 1_000_000..=after_s * 1_000_000),
    }
}

struct Case {
    curve: Curve,
    last: Option<i64>,
    cut: i64,
    first: i64,
    visits: i64,
    taken: i64,
}

impl Case {
    fn random(random: &mut StdRng) -> Self {
        let from = EPOCH_US + random.random_range(0..1_000_000_000);
        let cut = near(random, from, 30, 900);
        let curve = Curve {
            anchor: anchor(random),
            slope: slope(random),
            from: Some(DbTime::from_micros(from)),
            to: None,
            total: TOTAL,
        };
        let due = curve.due(DbTime::from_micros(cut));
        let ahead = [0, 0, 0, 40][random.random_range(0..4)];
        let visits = random.random_range(1..50);
        Self {
            last: random.random_bool(0.7).then(|| near(random, cut, 200, 1)),
            first: (due - random.random_range(0..60) + ahead).max(1),
            visits,
            taken: random.random_range(1..=visits),
            cut,
            curve,
        }
    }

    fn expected(&self) -> Vec<i64> {
        let cut = DbTime::from_micros(self.cut);
        let span = Span::of(&self.curve, self.last.map(DbTime::from_micros), cut);
        let visit_times = visited_at(&self.curve, self.first, self.visits, span);
        let taken = usize::try_from(self.taken).expect("positive");
        visit_times
            .iter()
            .take(taken)
            .map(|at| at.as_micros())
            .collect()
    }
}

#[tokio::test]
async fn sql_and_agent_date_the_visits_of_a_batch_alike_to_the_microsecond() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cases: Vec<Case> = (0..CASES).map(|_| Case::random(&mut random)).collect();
    let mut db = Database::migrated().await;
    db.run(MOMENT).await;
    let units = |units: i128| format_scaled(units, CURVE_DECIMALS);
    let froms = cases
        .iter()
        .map(|case| case.curve.from.map(DbTime::as_micros));
    let column = |value: fn(&Case) -> i64| cases.iter().map(value).collect::<Vec<_>>();
    let dated = sqlx::query(MOMENTS)
        .bind(
            cases
                .iter()
                .map(|case| units(case.curve.slope))
                .collect::<Vec<_>>(),
        )
        .bind(
            cases
                .iter()
                .map(|case| units(case.curve.anchor))
                .collect::<Vec<_>>(),
        )
        .bind(froms.collect::<Vec<_>>())
        .bind(cases.iter().map(|case| case.last).collect::<Vec<_>>())
        .bind(column(|case| case.cut))
        .bind(column(|case| case.first))
        .bind(column(|case| case.visits))
        .bind(column(|case| case.taken))
        .fetch_all(&mut db.connection)
        .await
        .expect("SQL dates them");
    assert_eq!(dated.len(), CASES);
    for (case, row) in cases.iter().zip(dated) {
        assert_eq!(
            row.get::<Vec<i64>, _>("moments"),
            case.expected(),
            "{:?}, last {:?}, cut {}, {} of {} from {}",
            case.curve,
            case.last,
            case.cut,
            case.taken,
            case.visits,
            case.first
        );
    }
}

#[tokio::test]
async fn sql_and_agent_agree_on_what_a_bucket_holds_to_the_last_unit() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut db = Database::migrated().await;
    db.run(MOMENT).await;
    let (mut units, mut ats, mut slopes, mut catch_ups, mut nows) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut expected = Vec::new();
    for _ in 0..CASES {
        let now = EPOCH_US + random.random_range(0..1_000_000_000);
        let at = random
            .random_bool(0.8)
            .then(|| near(&mut random, now, 3, 1));
        let level = at.map(|_| format_scaled(anchor(&mut random) * 1_000, LEVEL_DECIMALS));
        let (slope, catch_up) = (slope(&mut random), random.random_range(1_000..=1_000_000));
        let bucket = Bucket::from_columns(level.as_deref(), at.map(DbTime::from_micros));
        let now_at = DbTime::from_micros(now);
        let level_now = bucket.taken(&BucketRule::new(slope, catch_up), 0, now_at);
        expected.push(level_now.units_column().expect("a level"));
        units.push(level);
        ats.push(at);
        slopes.push(format_scaled(slope, CURVE_DECIMALS));
        catch_ups.push(catch_up);
        nows.push(now);
    }
    let levels = sqlx::query(LEVELS)
        .bind(&units)
        .bind(&ats)
        .bind(&slopes)
        .bind(&catch_ups)
        .bind(&nows)
        .fetch_all(&mut db.connection)
        .await
        .expect("SQL computes them");
    for (n, row) in levels.iter().enumerate() {
        assert_eq!(
            parse_scaled(row.get("level"), LEVEL_DECIMALS),
            parse_scaled(&expected[n], LEVEL_DECIMALS),
            "{:?} at {:?}, {} × {} at {}",
            units[n],
            ats[n],
            slopes[n],
            catch_ups[n],
            nows[n]
        );
    }
    assert_eq!(levels.len(), CASES);
}
