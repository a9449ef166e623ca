//! The server's connection to Postgres: a temporary `pgoutput` slot, and questions to the catalogue.
//!
//! Owns all SQL of the Realtime server. It keeps no subscriptions and decodes no rows. When the
//! connection is lost the slot is gone with it, and whoever holds a [`Slot`] makes another.
//!
//! Invariants: the slot is temporary, so nothing is left in the database; the session prints values
//! in the one form that `payload.rs` reads (UTC, ISO dates, hexadecimal bytes); what a client's words
//! may make fail is asked on a connection of its own, since an error takes a temporary slot with it.

use std::{str::FromStr, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgConnectOptions, types::Oid},
};
use thiserror::Error;
use tokio::time::timeout;

use super::{
    binding::{Filter, Target, Test},
    broadcast::{self, Replay},
    payload::{Form, Table, TableColumn},
    session::Verdict,
};
use crate::demo::pgoutput::Relation;

/// How long Postgres may take to accept the connection and to make the slot. A slot is made only
/// once the transactions that are open at the time have ended.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one question may take, as in the real server's query timeout.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Changes asked for at once; a transaction is never split.
const MAX_CHANGES: i32 = 1_000;

/// Tables that one binding may match.
const MAX_TABLES: i64 = 1_000;

/// Messages are kept so long, as on the real server.
const MESSAGES_KEPT_DAYS: i32 = 3;

/// A role that Supabase has; its rights are taken for granted where the database does not know it.
const SERVICE_ROLE: &str = "service_role";

/// Why there is no slot.
#[derive(Debug, Error)]
pub enum SlotError {
    /// The database could not be asked, or refused.
    #[error("Postgres: {0}; the slot is made anew")]
    Database(#[from] sqlx::Error),
    /// There is no answer.
    #[error("Postgres did not answer within {} s; the slot is made anew", .0.as_secs())]
    Timeout(Duration),
    /// The publication does not exist.
    #[error("there is no publication {0}; create it, the server waits for it")]
    NoPublication(String),
}

/// Why a target cannot be subscribed to.
#[derive(Debug, Error)]
pub enum Refused {
    /// The target is at fault; the message is the real server's.
    #[error("{0}")]
    Target(String),
    /// The connection is at fault.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// What a target turned out to mean for one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Oid of the table.
    pub relation: u32,
    /// The target's filters.
    pub tests: Vec<Test>,
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
    publication: String,
    /// Whether there are messages to broadcast.
    messages: bool,
}

impl Slot {
    /// Connects and makes a slot called `name`.
    ///
    /// # Errors
    /// When Postgres cannot be reached, refuses, or has no such publication.
    pub async fn open(url: &str, publication: &str, name: String) -> Result<Self, SlotError> {
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
            let publications: i64 =
                sqlx::query_scalar("select count(*) from pg_publication where pubname = $1")
                    .bind(publication)
                    .fetch_one(&mut connection)
                    .await?;
            if publications == 0 {
                return Err(SlotError::NoPublication(publication.to_owned()));
            }
            let messages: i64 =
                sqlx::query_scalar("select count(*) from pg_publication where pubname = $1")
                    .bind(broadcast::PUBLICATION)
                    .fetch_one(&mut connection)
                    .await?;
            // Each read of a slot is several lines in the server's log otherwise. Only superusers
            // may.
            let quiet = sqlx::query("set log_min_messages = fatal")
                .execute(&mut connection)
                .await;
            if let Err(error) = quiet {
                tracing::debug!(%error, "reads of the slot stay in the log of Postgres");
            }
            sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput', true)")
                .bind(&name)
                .execute(&mut connection)
                .await?;
            Ok(Self {
                connection,
                options,
                name,
                publication: publication.to_owned(),
                messages: messages > 0,
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
    /// When Postgres does not answer or refuses; the slot is then of no more use.
    pub async fn read(&mut self) -> Result<Vec<Vec<u8>>, SlotError> {
        let mut quoted = format!("\"{}\"", self.publication.replace('"', "\"\""));
        if self.messages {
            quoted = format!("{quoted},\"{}\"", broadcast::PUBLICATION);
        }
        let changes = sqlx::query_scalar(
            "select data from pg_logical_slot_get_binary_changes(
                 $1, null, $2, 'proto_version', '1', 'publication_names', $3)",
        )
        .bind(&self.name)
        .bind(MAX_CHANGES)
        .bind(quoted)
        .fetch_all(&mut self.connection);
        answer(changes).await
    }

    /// Whether there are messages to broadcast.
    pub fn reads_messages(&self) -> bool {
        self.messages
    }

    /// Whether a policy lets the role read the private topic: it is shown a message of that topic which is never committed,
    /// as the real server does it.
    pub async fn may_read(&self, topic: &str, role: &str) -> Verdict {
        let looking = async {
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
        match answer(looking).await {
            Ok(true) => Verdict::MayRead,
            // A role that does not exist, or has no right in the schema: nothing lets it read.
            Ok(false) | Err(SlotError::Database(sqlx::Error::Database(_))) => Verdict::MayNot,
            Err(_) => Verdict::Unknown,
        }
    }

    /// Deletes the messages that are too old to be told again. Nobody waits for it: what fails is tried again.
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
            tracing::debug!(%error, "realtime stand-in: old messages stay for now");
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
    ) -> Result<Vec<broadcast::Message>, SlotError> {
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
            broadcast::Message::stored(event, id, payload)
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
        .bind(&self.publication)
        .fetch_one(&mut self.connection);
        answer(tables).await
    }

    /// The table of a relation message, with what only the catalogue knows: type names and the
    /// primary key.
    ///
    /// # Errors
    /// When Postgres does not answer or refuses.
    pub async fn describe(&mut self, relation: &Relation) -> Result<Table, SlotError> {
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
            TableColumn {
                name: column.name.clone(),
                type_name: known.map_or("text", |known| &known.1).to_owned(),
                form: known.map_or(Form::Text, |(_, _, base, element, _)| match element {
                    Some(element) => Form::Array(Box::new(Form::of(element))),
                    None => Form::of(base),
                }),
                in_primary_key: known.is_some_and(|known| known.4),
                in_identity: column.in_identity,
            }
        });
        Ok(Table {
            schema: relation.namespace.clone(),
            name: relation.name.clone(),
            columns: columns.collect(),
        })
    }

    /// The published tables that `target` means, seen as `role`; never none.
    ///
    /// # Errors
    /// With the real server's message when nothing is published under that name, a column does not
    /// exist or a value is not of its type.
    pub async fn resolve(&mut self, target: &Target, role: &str) -> Result<Vec<Match>, Refused> {
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
        .bind(&self.publication)
        .bind(&target.schema)
        .bind(&target.table)
        .bind(role)
        .bind(MAX_TABLES)
        .fetch_all(&mut self.connection);
        let tables: Vec<(Oid, bool, bool, bool)> = answer(tables).await?;
        if tables.is_empty() {
            return Err(not_enabled(target));
        }
        let mut matches = Vec::with_capacity(tables.len());
        for (Oid(relation), role_exists, may_select, row_security) in tables {
            let service = !role_exists && role == SERVICE_ROLE;
            if !role_exists && !matches!(role, SERVICE_ROLE | "anon" | "authenticated") {
                let error = format!("ERROR 42704 (undefined_object) role {role:?} does not exist");
                return Err(exception(target, &error));
            }
            let mut tests = Vec::with_capacity(target.filters.len());
            for filter in &target.filters {
                tests.push(self.test(relation, filter, target).await?);
            }
            let authorized = may_select || service;
            let deletes_only = row_security && !service;
            matches.push(Match {
                relation,
                tests,
                authorized,
                deletes_only,
            });
        }
        Ok(matches)
    }

    /// Puts the operands of `filter` into the text form of the column's type.
    async fn test(
        &mut self,
        relation: u32,
        filter: &Filter,
        target: &Target,
    ) -> Result<Test, Refused> {
        let column = sqlx::query_as(
            "select format_type(a.atttypid, a.atttypmod), t.typname::text
             from pg_attribute a join pg_type t on t.oid = a.atttypid
             where a.attrelid = $1 and a.attname = $2 and a.attnum > 0 and not a.attisdropped",
        )
        .bind(Oid(relation))
        .bind(&filter.column)
        .fetch_optional(&mut self.connection);
        let column: Option<(String, String)> = answer(column).await?;
        let Some((sql_type, type_name)) = column else {
            let column = &filter.column;
            let error = format!("ERROR P0001 (raise_exception) invalid column for filter {column}");
            return Err(exception(target, &error));
        };
        let mut operands = Vec::with_capacity(filter.operands.len());
        let mut aside = answer(PgConnection::connect_with(&self.options)).await?;
        for operand in &filter.operands {
            // `format` prints with the type's output function, as pgoutput does; a cast to text
            // would turn a boolean into `true`. `sql_type` comes from the catalogue and is quoted
            // there.
            let cast = format!("select format('%s', cast($1::text as {sql_type}))");
            let canonical = sqlx::query_scalar(AssertSqlSafe(cast))
                .bind(operand)
                .fetch_one(&mut aside);
            operands.push(
                answer(canonical)
                    .await
                    .map_err(|error| wrong_value(target, error))?,
            );
        }
        let filter = Filter {
            operands,
            ..filter.clone()
        };
        Ok(Test {
            filter,
            numeric: Form::of(&type_name) == Form::Number,
        })
    }
}

async fn answer<T>(question: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, SlotError> {
    match timeout(QUERY_TIMEOUT, question).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(SlotError::Timeout(QUERY_TIMEOUT)),
    }
}

/// The refusal of a target that nothing published answers to.
pub fn not_enabled(target: &Target) -> Refused {
    Refused::Target(format!(
        "Unable to subscribe to changes with given parameters. Please check Realtime is enabled \
         for the given connect parameters: {target}"
    ))
}

fn exception(target: &Target, error: &str) -> Refused {
    Refused::Target(format!(
        "Unable to subscribe to changes with given parameters. An exception happened so please \
         check your connect parameters: {target}. Exception: {error}"
    ))
}

/// An operand that its type refuses is the client's fault; anything else the connection's.
fn wrong_value(target: &Target, error: SlotError) -> Refused {
    let SlotError::Database(sqlx::Error::Database(database)) = &error else {
        return error.into();
    };
    let Some(code) = database.code().filter(|code| code.starts_with("22")) else {
        return error.into();
    };
    let name = match code.as_ref() {
        "22P02" => "invalid_text_representation",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22003" => "numeric_value_out_of_range",
        _ => "data_exception",
    };
    exception(
        target,
        &format!("ERROR {code} ({name}) {}", database.message()),
    )
}
