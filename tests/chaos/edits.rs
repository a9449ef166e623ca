//! Editors without mercy: random edits of a few rows, two hundred a second, while an oracle watches.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::chaos::{DRAINS_WITHIN, oracle};
use crate::harness::{Place, long};

/// The rows that are edited.
const ROWS: usize = 30;
/// Editors at once, each with a connection of its own.
const EDITORS: u64 = 20;
/// Each makes so many edits a second.
const EDITS_A_SECOND: u32 = 10;

/// Rows that somebody edits, and by whom they may be visited.
pub struct Edited {
    url: String,
    rows: Mutex<Vec<Uuid>>,
    partners: [Uuid; 2],
    made: AtomicU64,
    failed: AtomicU64,
}

impl Edited {
    /// So many new rows, of two partners of their own.
    pub async fn new(place: &Place, rows: usize) -> Self {
        let partners = [(); 2].map(|()| Uuid::from_u128(rand::random()));
        for partner in partners {
            place
                .edit(format!("insert into partners (id) values ('{partner}')"))
                .await;
        }
        let edited = Self {
            url: place.url.clone(),
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

    /// Which rows these are, in SQL.
    pub fn condition(&self) -> String {
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

    /// Edits that failed: the database was away.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn insert(&self, id: Uuid) -> String {
        format!(
            "insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time)
             values ('{id}', '{}', 1000000, 'second', 5, clock_timestamp())
             on conflict do nothing;",
            self.partners[0]
        )
    }

    /// The one of them that the dice say.
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

    /// A row is deleted; the same comes back, unless another editor was quicker, or another in its place.
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

    /// Edits at that pace for a while.
    async fn hammer(&self, seed: u64, until: Instant) {
        let mut dice = Pcg32::seed_from_u64(seed);
        let mut connection = PgConnection::connect(&self.url)
            .await
            .expect("a connection");
        while Instant::now() < until {
            let next = Instant::now() + Duration::from_secs(1) / EDITS_A_SECOND;
            self.edit_once(&mut connection, &mut dice)
                .await
                .expect("an edit is let through");
            sleep_until(next).await;
        }
    }
}

#[tokio::test]
async fn under_two_hundred_edits_a_second_nothing_is_stored_that_its_row_did_not_allow_and_nothing_is_missing_at_the_end()
 {
    let place = Place::new().await;
    oracle::notes_edits(&place).await;
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
    let editors = (0..EDITORS).map(|editor| edited.hammer(seed ^ editor, until));
    futures_util::future::join_all(editors).await;
    let took = began_at.elapsed();
    let gap = oracle::longest_gap(
        &place,
        &format!("distribution_id = '{}'", neighbours[0]),
        &began,
    )
    .await;
    oracle::promises_hold(&place, "-infinity").await;

    oracle::calms(&place, &edited.condition()).await;
    oracle::all_are_on_their_curves(&place, DRAINS_WITHIN).await;
    for row in neighbours {
        assert_eq!(
            place.seconds_off_the_curve(row).await,
            [""; 0],
            "a neighbour"
        );
    }
    oracle::all_come_once(&place, DRAINS_WITHIN).await;
    oracle::promises_hold(&place, "-infinity").await;
    let visits: i64 = place.ask("select count(*) from store_visits").await;
    println!(
        "{} edits in {:.1} s, {visits} visits; the neighbour waited {gap:.1} s at the most",
        edited.made(),
        took.as_secs_f64(),
    );
}
