//! Random edits of a few rows, two hundred a second, judged by the oracle.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::chaos::DRAINS_WITHIN;
use crate::harness::{NewDistribution, Place, long};
use crate::oracle::{self, barrier};

/// The rows that are edited.
const ROWS: usize = 30;
/// Editors at once, each with a connection of its own.
const EDITORS: u64 = 20;
/// Each makes that many edits a second.
const EDITS_A_SECOND: u32 = 10;

/// Rows that are edited, and their partners.
pub struct Edited {
    rows: Mutex<Vec<Uuid>>,
    partners: [Uuid; 2],
    made: AtomicU64,
    failed: AtomicU64,
}

impl Edited {
    /// That many new rows, of two partners of their own.
    pub async fn new(place: &Place, rows: usize) -> Self {
        let partners = [place.new_partner().await, place.new_partner().await];
        let edited = Self {
            rows: Mutex::new(
                std::iter::repeat_with(|| Uuid::from_u128(rand::random()))
                    .take(rows)
                    .collect(),
            ),
            partners,
            made: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        let ids = edited.rows.lock().expect("nobody panics").clone();
        for id in ids {
            place.edit(edited.insert(id)).await;
        }
        edited
    }

    /// These rows, in SQL.
    fn condition(&self) -> String {
        let [one, other] = self.partners;
        format!("partner_id in ('{one}', '{other}')")
    }

    /// One of the partners.
    pub fn partner(&self) -> Uuid {
        self.partners[0]
    }

    /// Edits that were committed or rolled back.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Edits that failed because the database was unavailable.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn insert(&self, id: Uuid) -> String {
        // Another editor may have inserted it already.
        let row = NewDistribution::of(self.partner())
            .with("id", format!("'{id}'::uuid"))
            .rate("5 a second")
            .with("start_time", "clock_timestamp()");
        row.sql()
            .replace(" returning id", " on conflict do nothing")
    }

    /// Any of them.
    pub fn any(&self, dice: &mut Pcg32) -> Uuid {
        let rows = self.rows.lock().expect("nobody panics");
        rows[dice.random_range(0..rows.len())]
    }

    /// Random values for a row, as they are set.
    fn values(&self, id: Uuid, dice: &mut Pcg32) -> String {
        match dice.random_range(0..11) {
            0 | 1 => "is_active = false".to_owned(),
            2..=4 => "is_active = true".to_owned(),
            5 => format!(
                "visits_per_unit = {}, time_period = 'second'",
                dice.random_range(0..20)
            ),
            6 => format!(
                "visits_per_unit = {}.25, time_period = 'minute'",
                dice.random_range(0..900)
            ),
            7 => format!(
                "total_visits = greatest(0, {} + (select distributed from visit_distribution_progress
                   where distribution_id = '{id}'))",
                dice.random_range(-20..300)
            ),
            8 => format!(
                "start_time = clock_timestamp() + interval '{} ms', end_time = clock_timestamp() + interval '{} ms'",
                dice.random_range(-10_000..3_000),
                dice.random_range(3_001..20_000)
            ),
            9 => format!("partner_id = '{}'", self.partners[dice.random_range(0..2)]),
            _ => format!("catch_up = {}", dice.random_range(1..6)),
        }
    }

    /// A random edit: SQL that opens a transaction, how long it then stays open, and how it ends.
    fn edit(&self, dice: &mut Pcg32) -> (String, Duration, &'static str) {
        let id = self.any(dice);
        let set = |values: &str| {
            format!("begin; update visit_distribution set {values} where id = '{id}'")
        };
        let at_once = Duration::ZERO;
        match dice.random_range(0..14) {
            0 => (self.replace(id, dice), at_once, "commit"),
            1 => (
                set("is_active = not is_active, visits_per_unit = 40"),
                at_once,
                "rollback",
            ),
            2 => {
                let open = Duration::from_millis(dice.random_range(20..400));
                (
                    set("is_active = not is_active, end_time = null"),
                    open,
                    "commit",
                )
            }
            _ => (set(&self.values(id, dice)), at_once, "commit"),
        }
    }

    /// Deletes a row and inserts it again, or another in its place.
    fn replace(&self, id: Uuid, dice: &mut Pcg32) -> String {
        let again = if dice.random_bool(0.5) {
            id
        } else {
            Uuid::from_u128(dice.random())
        };
        for row in self.rows.lock().expect("nobody panics").iter_mut() {
            if *row == id {
                *row = again;
            }
        }
        format!(
            "begin; delete from visit_distribution where id in ('{id}', '{again}'); {}",
            self.insert(again)
        )
    }

    /// Makes one edit.
    pub async fn edit_once(
        &self,
        connection: &mut PgConnection,
        dice: &mut Pcg32,
    ) -> Result<(), sqlx::Error> {
        let (sql, open, end) = self.edit(dice);
        let edited = async {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut *connection)
                .await?;
            sleep(open).await;
            sqlx::raw_sql(end).execute(&mut *connection).await
        };
        let edited = edited.await.map(|_| ());
        let counter = if edited.is_ok() {
            &self.made
        } else {
            &self.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
        edited
    }

    /// Gives the rows a rate at which they are soon on their curves.
    pub async fn calm_down(&self, place: &Place) {
        place
            .edit(format!(
                "update visit_distribution set is_active = true, visits_per_unit = 10, time_period = 'second', end_time = null,
                        start_time = least(coalesce(start_time, clock_timestamp()), clock_timestamp()), catch_up = 40,
                        total_visits = 1000000
                  where {}",
                self.condition()
            ))
            .await;
    }

    /// Edits until then.
    async fn edit_until(&self, place: &Place, seed: u64, until: Instant) {
        let mut dice = Pcg32::seed_from_u64(seed);
        let mut connection = place.connect().await;
        while Instant::now() < until {
            let next = Instant::now() + Duration::from_secs(1) / EDITS_A_SECOND;
            self.edit_once(&mut connection, &mut dice)
                .await
                .expect("an edit succeeds");
            sleep_until(next).await;
        }
    }
}

#[tokio::test]
async fn under_two_hundred_edits_a_second_every_visit_was_allowed_when_it_was_stored_and_none_is_missing_at_the_end()
 {
    let place = Place::new().await;
    barrier::record_edits(&place).await;
    let neighbours = [
        place.insert(1_000_000, "30 a second", "null").await,
        place.insert(1_000_000, "150 a minute", "null").await,
    ];
    let edited = Edited::new(&place, ROWS).await;
    let _agents = [place.agent().await, place.agent().await];
    let began = oracle::now(&place).await;
    let span = Duration::from_secs(if long() { 120 } else { 12 });
    let began_at = Instant::now();
    let until = began_at + span;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let editors = (0..EDITORS).map(|editor| edited.edit_until(&place, seed ^ editor, until));
    futures_util::future::join_all(editors).await;
    let took = began_at.elapsed();
    let gap = oracle::longest_gap(&place, &oracle::visits_of(neighbours[0]), &began).await;
    barrier::promises_hold(&place, "-infinity").await;

    edited.calm_down(&place).await;
    oracle::all_are_on_their_curves(&place, DRAINS_WITHIN).await;
    for row in neighbours {
        assert_eq!(
            place.seconds_off_the_curve(row).await,
            [""; 0],
            "a neighbour"
        );
    }
    oracle::all_stored_exactly_once(&place, oracle::ALL, DRAINS_WITHIN).await;
    barrier::promises_hold(&place, "-infinity").await;
    let visits = place.all_stored().await;
    println!(
        "{} edits in {:.1} s, {visits} visits; longest gap of the neighbour {gap:.1} s",
        edited.made(),
        took.as_secs_f64(),
    );
}
