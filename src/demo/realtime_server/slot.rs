//! The server's connection to Postgres: a temporary `pgoutput` slot, and queries of the catalogue.
//!
//! Owns all SQL of the Realtime server. It keeps no subscriptions and decodes no rows. When the connection is lost the slot is
//! gone with it, and the owner of a [`Slot`] opens another.
//!
//! Invariants: the slot is temporary, so nothing is left in the database; the session prints values in the one form that
//! `payload.rs` reads (UTC, ISO dates, hexadecimal bytes); queries that may fail run on a connection of their own, since an
//! error takes a temporary slot with it.

use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, types::Oid},
};
use thiserror::Error;
use tokio::time::timeout;

use super::{
    binding::Target,
    broadcast::{self, BroadcastMessage, Replay},
    payload::{JsonForm, PublishedColumn, PublishedTable},
    session::ReadPermission,
};
use crate::demo::pgoutput::Relation;

/// The publication whose tables can be subscribed to. It may be created after the server has started.
const PUBLICATION: &str = "supabase_realtime";

/// How long Postgres may take to accept the connection and to create the slot, which waits for the end of all open
/// transactions.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one question may take, as in the real server's query timeout.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// The number of changes after which a read ends; a transaction is never split.
const MAX_CHANGES: i32 = 1_000;

/// Tables that one binding may match.
const MAX_TABLES: i64 = 1_000;

/// How long messages are kept, as on the real server.
const MESSAGES_KEPT_DAYS: i32 = 3;

/// Supabase's role; it may read everything even where the database does not have it.
const SERVICE_ROLE: &str = "service_role";

/// Why there is no slot.
#[derive(Debug, Error)]
pub enum SlotError {
    /// The database is unavailable, or refused.
    #[error("Postgres: {0}")]
    Database(#[from] sqlx::Error),
    /// There is no answer.
    #[error("Postgres did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The publication does not exist.
    #[error("there is no publication {PUBLICATION}; create it")]
    NoPublication,
}

/// Why a target cannot be subscribed to.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The target is at fault; the message is the real server's.
    #[error("{0}")]
    Target(String),
    /// The connection is at fault.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// A table that a target names, as a role sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableMatch {
    /// Oid of the table.
    pub relation: u32,
    /// Whether the role may read the table.
    pub authorized: bool,
    /// Whether inserts and updates are hidden from a role that may read the table: it has row
    /// security and the role does not bypass it. Policies are not evaluated here.
    pub deletes_only: bool,
}

/// A temporary replication slot and the connection that it lives in.
pub struct Slot {
    connection: PgConnection,
    options: PgConnectOptions,
    name: String,
    /// Whether the database has `realtime.messages`.
    messages: bool,
}

impl Slot {
    /// Connects and creates a slot called `name`.
    ///
    /// # Errors
    /// When Postgres cannot be reached, refuses, or has no such publication.
    pub async fn open(url: &str, name: String) -> Result<Self, SlotError> {
        let opening = async {
            let options = PgConnectOptions::from_str(url)?
                .application_name("visit-pacer demo realtime")
                .options([
                    ("timezone", "UTC"),
                    ("datestyle", "ISO"),
                    ("intervalstyle", "postgres"),
                    ("bytea_output", "hex"),
                ]);
            let mut connection = PgConnection::connect_with(&options).await?;
            let publications: Vec<String> = sqlx::query_scalar(
                "select pubname::text from pg_publication where pubname = any ($1)",
            )
            .bind([PUBLICATION, broadcast::PUBLICATION])
            .fetch_all(&mut connection)
            .await?;
            let has = |name: &str| publications.iter().any(|known| known == name);
            if !has(PUBLICATION) {
                return Err(SlotError::NoPublication);
            }
            // Otherwise each read of a slot is several lines in the server's log. Only superusers may set it.
            let quiet = sqlx::query("set log_min_messages = fatal")
                .execute(&mut connection)
                .await;
            if let Err(error) = quiet {
                tracing::debug!(%error, "reads of the slot appear in the log of Postgres");
            }
            sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput', true)")
                .bind(&name)
                .execute(&mut connection)
                .await?;
            Ok(Self {
                connection,
                options,
                name,
                messages: has(broadcast::PUBLICATION),
            })
        };
        timeout(OPEN_TIMEOUT, opening)
            .await
            .map_err(|_| SlotError::Timeout(OPEN_TIMEOUT))?
    }

    /// Reads and consumes the next changes, as `pgoutput` messages in commit order; whole
    /// transactions only.
    ///
    /// # Errors
    /// When Postgres does not answer or refuses; the slot is lost then.
    pub async fn read(&mut self) -> Result<Vec<Vec<u8>>, SlotError> {
        let publications = if self.messages {
            format!("{PUBLICATION},{}", broadcast::PUBLICATION)
        } else {
            PUBLICATION.to_owned()
        };
        let changes = sqlx::query_scalar(
            "select data from pg_logical_slot_get_binary_changes(
                 $1, null, $2, 'proto_version', '1', 'publication_names', $3)",
        )
        .bind(&self.name)
        .bind(MAX_CHANGES)
        .bind(publications)
        .fetch_all(&mut self.connection);
        answer(changes).await
    }

    /// Whether broadcasts are read.
    pub fn reads_messages(&self) -> bool {
        self.messages
    }

    /// Whether a policy lets the role read the private topic: tested with a message of that topic that is never committed,
    /// as on the real server.
    pub async fn may_read(&self, topic: &str, role: &str) -> ReadPermission {
        let test = async {
            let mut aside = PgConnection::connect_with(&self.options).await?;
            let mut transaction = aside.begin().await?;
            sqlx::query(
                "insert into realtime.messages (topic, extension) values ($1, 'broadcast')",
            )
            .bind(topic)
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "select set_config('realtime.topic', $1, true), set_config('role', $2, true)",
            )
            .bind(topic)
            .bind(role)
            .execute(&mut *transaction)
            .await?;
            let seen: i64 = sqlx::query_scalar(
                "select count(*) from realtime.messages where topic = $1 and extension = 'broadcast'",
            )
            .bind(topic)
            .fetch_one(&mut *transaction)
            .await?;
            Ok(seen > 0)
        };
        match answer(test).await {
            Ok(true) => ReadPermission::Granted,
            // The role does not exist, or has no right in the schema.
            Ok(false) | Err(SlotError::Database(sqlx::Error::Database(_))) => {
                ReadPermission::Denied
            }
            Err(_) => ReadPermission::Unknown,
        }
    }

    /// Deletes messages that are too old to be replayed. A failure is only logged; the next cleaning tries again.
    pub async fn clean(&self) {
        if !self.messages {
            return;
        }
        let deleting = async {
            let mut aside = PgConnection::connect_with(&self.options).await?;
            sqlx::query(
                "delete from realtime.messages
                 where inserted_at < now() at time zone 'UTC' - make_interval(days => $1)",
            )
            .bind(MESSAGES_KEPT_DAYS)
            .execute(&mut aside)
            .await
        };
        if let Err(error) = answer(deleting).await {
            tracing::debug!(%error, "cannot delete old messages");
        }
    }

    /// The stored messages of a private topic, the oldest first.
    ///
    /// # Errors
    /// When Postgres does not answer or refuses.
    pub async fn stored(
        &mut self,
        topic: &str,
        replay: Replay,
    ) -> Result<Vec<BroadcastMessage>, SlotError> {
        if !self.messages {
            return Ok(Vec::new());
        }
        let stored = sqlx::query_as(
            "select event, id::text, payload::text from realtime.messages
             where topic = $1 and private and event is not null and payload is not null
               and inserted_at >= to_timestamp($2 / 1000.0) at time zone 'UTC'
             order by inserted_at desc, ctid desc limit $3",
        )
        .bind(topic)
        .bind(replay.since)
        .bind(replay.limit)
        .fetch_all(&mut self.connection);
        let stored: Vec<(String, String, String)> = answer(stored).await?;
        let message = |(event, id, payload): &(String, String, String)| {
            BroadcastMessage::stored(event, id, payload)
        };
        Ok(stored.iter().rev().map(message).collect())
    }

    /// A text that differs when the published tables differ.
    ///
    /// # Errors
    /// When Postgres does not answer or refuses.
    pub async fn published(&mut self) -> Result<String, SlotError> {
        let tables = sqlx::query_scalar(
            "select coalesce(string_agg(format('%I.%I', schemaname, tablename), ' '
                        order by schemaname, tablename), '')
             from pg_publication_tables where pubname = $1",
        )
        .bind(PUBLICATION)
        .fetch_one(&mut self.connection);
        answer(tables).await
    }

    /// The table of a relation message, with what only the catalogue knows: type names and the
    /// primary key.
    ///
    /// # Errors
    /// When Postgres does not answer or refuses.
    pub async fn describe(&mut self, relation: &Relation) -> Result<PublishedTable, SlotError> {
        let columns = sqlx::query_as(
            "select a.attname::text, t.typname::text, coalesce(b.typname, t.typname)::text,
                    e.typname::text, coalesce(a.attnum = any (i.indkey), false)
             from pg_attribute a
             join pg_type t on t.oid = a.atttypid
             left join pg_type b on t.typtype = 'd' and b.oid = t.typbasetype
             left join pg_type e on t.typcategory = 'A' and e.oid = t.typelem
             left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped",
        )
        .bind(Oid(relation.oid))
        .fetch_all(&mut self.connection);
        let known: Vec<(String, String, String, Option<String>, bool)> = answer(columns).await?;
        let columns = relation.columns.iter().map(|column| {
            let known = known.iter().find(|known| known.0 == column.name);
            PublishedColumn {
                name: column.name.clone(),
                type_name: known.map_or("text", |known| &known.1).to_owned(),
                form: known.map_or(JsonForm::Text, |(_, _, base, element, _)| match element {
                    Some(element) => JsonForm::Array(Box::new(JsonForm::of(element))),
                    None => JsonForm::of(base),
                }),
                in_primary_key: known.is_some_and(|known| known.4),
                in_identity: column.in_identity,
            }
        });
        Ok(PublishedTable {
            schema: relation.namespace.clone(),
            name: relation.name.clone(),
            columns: columns.collect(),
        })
    }

    /// The published tables that `target` names, as `role` sees them; never none.
    ///
    /// # Errors
    /// With the real server's message when nothing is published under that name, or the role does not exist.
    pub async fn resolve(
        &mut self,
        target: &Target,
        role: &str,
    ) -> Result<Vec<TableMatch>, ResolveError> {
        let tables = sqlx::query_as(
            "select c.oid, r.oid is not null,
                    coalesce(has_table_privilege(r.oid, c.oid, 'select'), false),
                    c.relrowsecurity and not coalesce(r.rolsuper or r.rolbypassrls, false)
             from pg_publication_tables p
             join pg_namespace n on n.nspname = p.schemaname
             join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
             left join pg_roles r on r.rolname = $4
             where p.pubname = $1 and ($2 = '*' or p.schemaname like $2)
               and ($3 = '*' or p.tablename like $3)
             order by c.oid limit $5",
        )
        .bind(PUBLICATION)
        .bind(&target.schema)
        .bind(&target.table)
        .bind(role)
        .bind(MAX_TABLES)
        .fetch_all(&mut self.connection);
        let tables: Vec<(Oid, bool, bool, bool)> = answer(tables).await?;
        if tables.is_empty() {
            return Err(not_enabled(target));
        }
        let role_exists = tables.iter().all(|(_, exists, ..)| *exists);
        let service = !role_exists && role == SERVICE_ROLE;
        if !role_exists && !matches!(role, SERVICE_ROLE | "anon" | "authenticated") {
            return Err(ResolveError::Target(format!(
                "Unable to subscribe to changes with given parameters. An exception happened so please \
                 check your connect parameters: {target}. Exception: ERROR 42704 (undefined_object) \
                 role {role:?} does not exist"
            )));
        }
        let matches = tables
            .into_iter()
            .map(|(Oid(relation), _, may_select, row_security)| TableMatch {
                relation,
                authorized: may_select || service,
                deletes_only: row_security && !service,
            });
        Ok(matches.collect())
    }
}

async fn answer<T>(question: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, SlotError> {
    match timeout(QUERY_TIMEOUT, question).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(SlotError::Timeout(QUERY_TIMEOUT)),
    }
}

/// The error of a target that names no published table.
pub fn not_enabled(target: &Target) -> ResolveError {
    ResolveError::Target(format!(
        "Unable to subscribe to changes with given parameters. Please check Realtime is enabled \
         for the given connect parameters: {target}"
    ))
}
