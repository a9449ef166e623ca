//! New rows of the user's tables.

use sqlx::{AssertSqlSafe, PgExecutor};
use uuid::Uuid;

use super::Place;

/// An INSERT of one or more distributions. Each value is an SQL expression.
#[derive(Clone, Debug)]
pub struct NewDistribution {
    columns: Vec<(&'static str, String)>,
    count: i64,
}

impl NewDistribution {
    /// A million visits, one a second, from now on without end.
    pub fn of(partner: Uuid) -> Self {
        let row = Self {
            columns: Vec::new(),
            count: 1,
        };
        row.with("partner_id", format!("'{partner}'"))
            .total(1_000_000)
            .rate("1 a second")
            .with("start_time", "now()")
    }

    /// With another total.
    #[must_use]
    pub fn total(self, visits: i64) -> Self {
        self.with("total_visits", visits.to_string())
    }

    /// With another rate, such as `"33.33 a minute"`.
    #[must_use]
    pub fn rate(self, rate: &str) -> Self {
        let (visits, unit) = rate.split_once(" a ").expect("a rate is `NUMBER a UNIT`");
        self.with("visits_per_unit", visits)
            .with("time_period", format!("'{unit}'"))
    }

    /// With the value of a column.
    #[must_use]
    pub fn with(mut self, column: &'static str, value: impl Into<String>) -> Self {
        self.columns.retain(|(known, _)| *known != column);
        self.columns.push((column, value.into()));
        self
    }

    /// That many of them.
    #[must_use]
    pub fn times(mut self, count: i64) -> Self {
        self.count = count;
        self
    }

    /// The statement, which returns the ids.
    pub fn sql(&self) -> String {
        let (columns, values): (Vec<&str>, Vec<&str>) = self
            .columns
            .iter()
            .map(|(column, value)| (*column, value.as_str()))
            .unzip();
        format!(
            "insert into visit_distribution ({}) select {} from generate_series(1, {}) returning id",
            columns.join(", "),
            values.join(", "),
            self.count
        )
    }

    /// Inserts them.
    pub async fn insert(&self, db: impl PgExecutor<'_>) -> Vec<Uuid> {
        sqlx::query_scalar(AssertSqlSafe(self.sql()))
            .fetch_all(db)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", self.sql()))
    }
}

impl Place {
    /// A new partner.
    pub async fn new_partner(&self) -> Uuid {
        let partner = Uuid::from_u128(rand::random());
        // As a literal, so that it also is an id where ids of partners are text.
        self.edit(format!("insert into partners (id) values ('{partner}')"))
            .await;
        partner
    }

    /// A distribution of the place's partner, not yet inserted.
    pub fn row(&self) -> NewDistribution {
        NewDistribution::of(self.partner)
    }

    /// Inserts distributions.
    pub async fn insert_rows(&self, rows: &NewDistribution) -> Vec<Uuid> {
        rows.insert(&self.db).await
    }

    /// Inserts a distribution that starts now: a total, a rate such as `"33.33 a minute"`, and a window such as
    /// `"interval '1 hour'"` or `"null"`.
    pub async fn insert(&self, total: i64, rate: &str, window: &str) -> Uuid {
        let row = self.row().total(total).rate(rate);
        let row = row.with("end_time", format!("now() + {window}"));
        self.insert_rows(&row).await[0]
    }

    /// Updates a distribution.
    pub async fn set(&self, id: Uuid, assignments: &str) {
        self.edit(format!(
            "update visit_distribution set {assignments} where id = '{id}'"
        ))
        .await;
    }
}
