//! The state of a distribution, and waiting for it.

use std::time::Duration;

use sqlx::FromRow;
use sqlx::postgres::PgRow;
use sqlx::{Error, Row as _};
use uuid::Uuid;

use super::{PATIENCE, Place, find, wait_until};

/// The state of a distribution, read in one statement, so all of it is of one snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    /// As in the status view.
    pub status: String,
    /// As in the status view.
    pub reason: Option<String>,
    /// As in the status view.
    pub total_visits: i64,
    /// As in the status view.
    pub due: Option<i64>,
    /// As in the status view.
    pub distributed: i64,
    /// Visits in `store_visits`.
    pub stored: i64,
    /// As in the user's own column.
    pub total_distributed: i64,
}

impl FromRow<'_, PgRow> for Observed {
    fn from_row(row: &PgRow) -> Result<Self, Error> {
        Ok(Self {
            status: row.try_get("status")?,
            reason: row.try_get("reason")?,
            total_visits: row.try_get("total_visits")?,
            due: row.try_get("due")?,
            distributed: row.try_get("distributed")?,
            stored: row.try_get("stored")?,
            total_distributed: row.try_get("total_distributed")?,
        })
    }
}

impl Observed {
    /// Visits that are due and not stored.
    pub fn backlog(&self) -> i64 {
        self.due.expect("a valid distribution") - self.stored
    }
}

impl Place {
    /// The state of a distribution.
    pub async fn look(&self, id: Uuid) -> Observed {
        sqlx::query_as(
            "select s.status, s.reason, s.total_visits::bigint as total_visits, s.due, s.distributed,
                    (select count(*) from store_visits v where v.distribution_id = s.id) as stored,
                    d.total_distributed::bigint as total_distributed
               from visit_distribution_status s join visit_distribution d on d.id = s.id where s.id = $1",
        )
        .bind(id)
        .fetch_one(&self.db)
        .await
        .expect("the distribution exists")
    }

    /// Visits stored for a distribution, which may have been deleted.
    pub async fn stored(&self, id: Uuid) -> i64 {
        self.ask(format!(
            "select count(*) from store_visits where distribution_id = '{id}'"
        ))
        .await
    }

    /// Visits in `store_visits`.
    pub async fn all_stored(&self) -> i64 {
        self.ask("select count(*) from store_visits").await
    }

    /// Waits until a distribution has at least that many visits; returns how many.
    pub async fn has_stored(&self, id: Uuid, visits: i64) -> i64 {
        find(format!("{visits} visits of {id}"), PATIENCE, async || {
            let stored = self.stored(id).await;
            (stored >= visits).then_some(stored)
        })
        .await
    }

    /// Waits until a distribution has that many visits more.
    pub async fn stores_more(&self, id: Uuid, visits: i64) {
        let before = self.stored(id).await;
        self.has_stored(id, before + visits).await;
    }

    /// Waits until a distribution has that status.
    pub async fn becomes(&self, id: Uuid, status: &str) -> Observed {
        self.becomes_within(id, status, PATIENCE).await
    }

    /// Waits until a distribution has that status, with a limit.
    pub async fn becomes_within(&self, id: Uuid, status: &str, limit: Duration) -> Observed {
        find(format!("{id} is {status}"), limit, async || {
            let observed = self.look(id).await;
            (observed.status == status).then_some(observed)
        })
        .await
    }

    /// Waits until the backlog of a distribution is at most that.
    pub async fn catches_up(&self, id: Uuid, backlog: i64) {
        let what = format!("{id} has a backlog of at most {backlog}");
        wait_until(what, 2 * PATIENCE, async || {
            self.look(id).await.backlog() <= backlog
        })
        .await;
    }

    /// Waits until a live agent has sent a heartbeat that many seconds of DB time from now.
    pub async fn agents_work_for(&self, seconds: u32) {
        let until: String = self
            .ask(format!(
                "select (clock_timestamp() + interval '{seconds} seconds')::text"
            ))
            .await;
        wait_until(
            format!("{seconds} s of an agent's work"),
            PATIENCE + Duration::from_secs(seconds.into()),
            async || {
                self.ask(format!(
                    "select exists (select from visit_pacer_agents where last_heartbeat_at > '{until}')"
                ))
                .await
            },
        )
        .await;
    }
}
