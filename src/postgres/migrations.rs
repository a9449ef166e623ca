//! The files of `migrations/`, and whether a database has them.
//!
//! A file records itself in `visit_pacer_migrations`, whoever applies it (`supabase db push`, psql, or this program), and
//! that table alone is read here. This program applies all pending files in one transaction: all of them or none.

use std::time::Duration;

use rand::RngExt as _;
use serde::Serialize;
use sqlx::{Connection as _, Executor, PgConnection, Postgres};

/// One file: its version (the digits of its name), its name, its text.
pub struct Migration {
    /// `YYYYMMDDHHMMSS`
    pub version: &'static str,
    /// The file's name.
    pub name: &'static str,
    /// The file's text.
    pub sql: &'static str,
}

macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration {
            version: $version,
            name: concat!($version, "_", $name, ".sql"),
            sql: include_str!(concat!("../../migrations/", $version, "_", $name, ".sql")),
        }
    };
}

/// All of them, in order.
pub const MIGRATIONS: &[Migration] = &[
    migration!("20261201000000", "visit_pacer_preflight"),
    migration!("20261201000100", "visit_pacer_tables"),
    migration!("20261201000200", "visit_pacer_curve"),
    migration!("20261201000300", "visit_pacer_write"),
    migration!("20261201000400", "visit_pacer_status"),
    migration!("20261201000500", "visit_pacer_functions"),
    migration!("20261201000600", "visit_pacer_retention"),
    migration!("20261201000700", "visit_pacer_access"),
];

/// Something that the files create.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SchemaObject {
    /// `table`, `view`, `function`, `type` or `trigger`.
    pub kind: &'static str,
    /// Its name in the schema public.
    pub name: &'static str,
    /// The statement that creates it; only of a trigger.
    pub definition: Option<&'static str>,
    /// A trigger that is ENABLE ALWAYS.
    pub is_always: bool,
}

/// What a statement that creates an object begins with.
const CREATE: &[(&str, &str)] = &[
    ("table", "create table if not exists public."),
    ("view", "create or replace view public."),
    ("function", "create or replace function public."),
    ("type", "create type public."),
    ("trigger", "create or replace trigger "),
];

/// Everything that the files create, in their order; an overloaded function once for each signature.
pub fn objects() -> impl Iterator<Item = SchemaObject> {
    MIGRATIONS
        .iter()
        .flat_map(|file| {
            let lines = file.sql.split_inclusive('\n');
            lines.scan(0, |offset, line| {
                let rest = file.sql.get(*offset..).unwrap_or_default();
                *offset += line.len();
                Some(object(line, rest))
            })
        })
        .flatten()
}

/// The object that a line creates; `rest`: the file from that line on.
fn object(line: &'static str, rest: &'static str) -> Option<SchemaObject> {
    let line = line.trim();
    let (kind, name) =
        (CREATE.iter()).find_map(|(kind, begin)| Some((*kind, line.strip_prefix(begin)?)))?;
    let name = name.split([' ', '(']).next()?;
    let definition = (kind == "trigger").then(|| rest.split_inclusive(';').next());
    let always = format!("enable always trigger {name}");
    Some(SchemaObject {
        kind,
        name,
        definition: definition.flatten(),
        is_always: rest.contains(&always),
    })
}

/// The files that a database does not have yet, in order.
pub async fn missing<C>(connection: &mut C) -> Result<Vec<&'static Migration>, sqlx::Error>
where
    for<'c> &'c mut C: Executor<'c, Database = Postgres>,
{
    let there: bool =
        sqlx::query_scalar("select to_regclass('public.visit_pacer_migrations') is not null")
            .fetch_one(&mut *connection)
            .await?;
    let applied: Vec<String> = if there {
        sqlx::query_scalar("select version from public.visit_pacer_migrations")
            .fetch_all(connection)
            .await?
    } else {
        Vec::new()
    };
    Ok(MIGRATIONS
        .iter()
        .filter(|file| applied.iter().all(|version| version != file.version))
        .collect())
}

/// One run at a time in a database: others wait, and then find nothing to do.
const ONE_AT_A_TIME: i64 = 4_702_394_921_427_289_964;

/// How often the files are tried where another session holds a lock that they need. Each try waits for less than a second, so that
/// the sessions that queue up behind it never wait longer than that.
const LOCK_TRIES: u32 = 40;
/// The pause between two tries: from this long to twice as long.
const LOCK_PAUSE: Duration = Duration::from_millis(700);
/// As `visit_pacer_preflight` raises it.
const REFUSED: &str = "VP000";
/// `lock_not_available`
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Why the files were not applied. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Another session held a lock for as long as it was tried.
    #[error(
        "another session holds a lock on a table that has to be altered, and still did after {LOCK_TRIES} tries; nothing was changed; \
         end it, or run this again when it has ended: {blockers}"
    )]
    Locked {
        /// The sessions that hold locks on the user's tables, where this role may see them.
        blockers: String,
        /// What PostgreSQL reported.
        source: sqlx::Error,
    },
    /// The preflight refuses the schema: the table, the column, what was found and what to do.
    #[error("{0}")]
    Refused(String),
    /// Anything else: a right is missing, the connection is lost.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Applies the pending files in one transaction. Returns the names of the files that were applied.
pub async fn apply(connection: &mut PgConnection) -> Result<Vec<&'static str>, MigrateError> {
    sqlx::raw_sql("set statement_timeout = 0; set lock_timeout = 0")
        .execute(&mut *connection)
        .await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(ONE_AT_A_TIME)
        .execute(&mut *connection)
        .await?;
    let applied = apply_with_retries(connection).await;
    sqlx::query("select pg_advisory_unlock($1)")
        .bind(ONE_AT_A_TIME)
        .execute(&mut *connection)
        .await?;
    applied
}

async fn apply_with_retries(
    connection: &mut PgConnection,
) -> Result<Vec<&'static str>, MigrateError> {
    let mut tries = 1;
    loop {
        let source = match apply_missing(connection).await {
            Ok(applied) => return Ok(applied),
            Err(error) if code(&error).as_deref() == Some(LOCK_NOT_AVAILABLE) => error,
            Err(error) if code(&error).as_deref() == Some(REFUSED) => {
                let message = error
                    .as_database_error()
                    .map(sqlx::error::DatabaseError::message);
                return Err(MigrateError::Refused(
                    message.unwrap_or_default().to_owned(),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        if tries == LOCK_TRIES {
            let blockers = blockers(connection).await?;
            return Err(MigrateError::Locked { blockers, source });
        }
        tries += 1;
        let pause = rand::rng().random_range(LOCK_PAUSE..LOCK_PAUSE * 2);
        tokio::time::sleep(pause).await;
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    error.code().map(std::borrow::Cow::into_owned)
}

async fn apply_missing(connection: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let files = missing(connection).await?;
    let mut transaction = connection
        .begin_with("begin transaction isolation level read committed, read write")
        .await?;
    for file in &files {
        sqlx::raw_sql(file.sql).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(files.iter().map(|file| file.name).collect())
}

/// The other sessions that hold locks on the user's tables, the oldest transaction first.
async fn blockers(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    const BLOCKERS: &str = "
      select coalesce(string_agg(format('pid %s, user %s, application %s, in a transaction since %s',
                                        a.pid, a.usename, coalesce(nullif(a.application_name, ''), 'unnamed'), a.xact_start),
                                 '; ' order by a.xact_start), 'none is visible to this role')
        from pg_stat_activity a
       where a.pid <> pg_backend_pid()
         and a.pid in (select l.pid from pg_locks l
                        where l.granted and l.relation in (to_regclass('public.partners'), to_regclass('public.visit_distribution'),
                                                           to_regclass('public.store_visits')))";
    sqlx::query_scalar(BLOCKERS).fetch_one(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded_in_order_and_records_itself() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder is there")
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .into_string()
                    .expect("plain")
            })
            .collect();
        names.sort();
        let embedded: Vec<&str> = MIGRATIONS.iter().map(|file| file.name).collect();
        assert_eq!(embedded, names);
        for file in MIGRATIONS {
            let line = format!(
                "insert into public.visit_pacer_migrations (version) values ('{}') on conflict do nothing;",
                file.version
            );
            assert!(
                file.sql.trim_end().ends_with(&line),
                "{} must end with: {line}",
                file.name
            );
        }
    }

    #[test]
    fn every_statement_that_creates_something_is_recognised() {
        let count = |kind| objects().filter(|object| object.kind == kind).count();
        let created: usize = (MIGRATIONS.iter())
            .map(|file| {
                file.sql.matches("create or replace ").count()
                    + file.sql.matches("create table ").count()
            })
            .sum();
        let recognised = ["table", "view", "function", "trigger"].map(count);
        assert_eq!(recognised.iter().sum::<usize>(), created, "{recognised:?}");
        assert!(recognised.iter().all(|count| *count > 1) && count("type") > 1);
        for trigger in objects().filter(|object| object.kind == "trigger") {
            let definition = trigger.definition.expect("a statement");
            assert!(
                definition.starts_with("create or replace trigger ")
                    && definition.contains(" execute function ")
                    && definition.ends_with(';'),
                "{definition}"
            );
        }
    }
}
