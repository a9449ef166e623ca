//! The SQL functions that a person calls from the shell, and what a plan needs to know of the disk.

use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::connection::Connection;
use super::rows::partner_id;
use crate::domain::partner::PartnerId;

/// One line of `distribute_visits()` or `distribute_visits_for_partner()`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Distributed {
    /// `partner_id`
    pub partner_id: Option<PartnerId>,
    /// `visits_added`
    pub visits_added: i64,
    /// `message`
    pub message: Option<String>,
}

/// Stores visits: so many for a partner at once, or what is due now for everybody.
pub async fn distribute(
    connection: &mut Connection,
    partner: Option<(&PartnerId, i32)>,
) -> Result<Vec<Distributed>, sqlx::Error> {
    const FOR_PARTNER: &str = "
      select partner_id::text, visits_added, message
        from public.distribute_visits_for_partner(public.visit_pacer_partner($1), $2)";
    let rows =
        match partner {
            Some((partner, visits)) => {
                sqlx::query(FOR_PARTNER)
                    .bind(partner.to_string())
                    .bind(visits)
                    .fetch_all(connection)
                    .await?
            }
            None => sqlx::query(
                "select partner_id::text, visits_added, message from public.distribute_visits()",
            )
            .fetch_all(connection)
            .await?,
        };
    rows.iter()
        .map(|row| {
            Ok(Distributed {
                partner_id: partner_id(row)?,
                visits_added: row.try_get("visits_added")?,
                message: row.try_get("message")?,
            })
        })
        .collect()
}

/// One line of `adopt_existing_visits()`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adopted {
    /// `distribution_id`
    pub distribution_id: Option<Uuid>,
    /// `adopted`
    pub adopted: i64,
    /// `message`
    pub message: Option<String>,
}

/// Tags a partner's untagged visits with the one distribution whose window holds them.
pub async fn adopt(
    connection: &mut Connection,
    partner: &PartnerId,
) -> Result<Vec<Adopted>, sqlx::Error> {
    connection.without_timeout().await?;
    let rows =
        sqlx::query("select * from public.adopt_existing_visits(public.visit_pacer_partner($1))")
            .bind(partner.to_string())
            .fetch_all(connection)
            .await?;
    rows.iter()
        .map(|row| {
            Ok(Adopted {
                distribution_id: row.try_get("distribution_id")?,
                adopted: row.try_get("adopted")?,
                message: row.try_get("message")?,
            })
        })
        .collect()
}

/// Has a distribution owe what its pace gives since its start; the message says what came of it.
pub async fn backfill(
    connection: &mut Connection,
    distribution: Uuid,
) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("select message from public.visit_pacer_backfill($1)")
        .bind(distribution)
        .fetch_one(connection)
        .await
}

/// Generated visits that are stored: of one distribution, or of all.
pub async fn generated(
    connection: &mut Connection,
    distribution: Option<Uuid>,
) -> Result<i64, sqlx::Error> {
    connection.without_timeout().await?;
    sqlx::query_scalar(
        "select count(*) from public.store_visits \
         where distribution_id is not null and ($1::uuid is null or distribution_id = $1)",
    )
    .bind(distribution)
    .fetch_one(connection)
    .await
}

/// Removes generated visits of one distribution, counted as purged; as many as one call takes. 0: none is left.
pub async fn purge(connection: &mut Connection, distribution: Uuid) -> Result<i64, sqlx::Error> {
    connection.without_timeout().await?;
    sqlx::query_scalar("select purged from public.visit_pacer_purge_distribution($1)")
        .bind(distribution)
        .fetch_one(connection)
        .await
        .map(|purged: Option<i64>| purged.unwrap_or(0))
}

/// Runs a script of ours, which is one transaction of its own.
pub async fn script(connection: &mut Connection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .map(|_| ())
}

/// What stands on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// The database's size, in bytes.
    pub used: i64,
    /// What a row of `store_visits` takes with its indexes, in bytes; `None` where there are too few to tell.
    pub bytes_per_visit: Option<i64>,
}

/// Rows of `store_visits` from which their average size is believed.
const ROWS_TO_BELIEVE: f64 = 10_000.0;

/// Measures the disk.
pub async fn disk(connection: &mut Connection) -> Result<Disk, sqlx::Error> {
    let row = sqlx::query(
        "select pg_database_size(current_database()) as used,
                case when c.reltuples >= $1 then nullif(pg_total_relation_size(c.oid), 0) / c.reltuples::bigint end as each
           from pg_class c where c.oid = 'public.store_visits'::regclass",
    )
    .bind(ROWS_TO_BELIEVE)
    .fetch_one(connection)
    .await?;
    Ok(Disk {
        used: row.try_get("used")?,
        bytes_per_visit: row.try_get("each")?,
    })
}
