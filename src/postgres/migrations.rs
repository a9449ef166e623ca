//! The files of `migrations/`, and whether a database has them.
//!
//! A file records itself in `visit_pacer_migrations`, whoever applies it (`supabase db push`, psql, or this program), and
//! that table alone is read here. Each file runs in one transaction.

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
    migration!("20261201000100", "visit_pacer_tables"),
    migration!("20261201000200", "visit_pacer_curve"),
    migration!("20261201000300", "visit_pacer_write"),
    migration!("20261201000400", "visit_pacer_status"),
    migration!("20261201000500", "visit_pacer_functions"),
    migration!("20261201000600", "visit_pacer_retention"),
    migration!("20261201000700", "visit_pacer_access"),
];

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

/// Applies what is missing, each file in a transaction of its own. Returns the names of the files that were applied.
pub async fn apply(connection: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    sqlx::raw_sql("set statement_timeout = 0; set lock_timeout = 0")
        .execute(&mut *connection)
        .await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(ONE_AT_A_TIME)
        .execute(&mut *connection)
        .await?;
    let applied = apply_missing(connection).await;
    sqlx::query("select pg_advisory_unlock($1)")
        .bind(ONE_AT_A_TIME)
        .execute(&mut *connection)
        .await?;
    applied
}

async fn apply_missing(connection: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let mut applied = Vec::new();
    for file in missing(connection).await? {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(file.sql).execute(&mut *transaction).await?;
        transaction.commit().await?;
        applied.push(file.name);
    }
    Ok(applied)
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
}
