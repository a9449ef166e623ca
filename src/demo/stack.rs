//! PostgreSQL and Realtime together, with the schema, Supabase's roles, and a key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};

use super::jwt;
use super::private_file::write_private;
use super::realtime_server::{RealtimeOptions, RealtimeServer};
use super::server::{PostgresOptions, PostgresServer, StopMode};
use crate::domain::secret::Secret;
use crate::postgres::migrations;

/// The database of the demo, named as Supabase names its own.
pub const DATABASE: &str = "postgres";

/// When the demo's keys expire: in the year 2100, in seconds since the Unix epoch.
const KEY_EXPIRES_AT: i64 = 4_102_444_800;

/// The roles of `PostgREST` and Realtime on Supabase.
const ROLES: &str = "
  do $$ begin
    if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if;
    if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if;
    if not exists (select from pg_roles where rolname = 'service_role') then create role service_role nologin bypassrls; end if;
  end $$;
  grant usage on schema public to anon, authenticated, service_role";

/// The objects that broadcasts from the database need.
const MESSAGES: &str = include_str!("messages.sql");
/// Broadcasts of edits.
const BROADCAST: &str = include_str!("../../deploy/supabase/broadcast.sql");

/// Two partners with the guide's two examples, unless one of theirs is running.
const SAMPLE: &str = include_str!("sample.sql");

/// What to start.
pub struct StackOptions {
    /// The directory of all data, kept between runs.
    pub data_dir: PathBuf,
    /// The port of PostgreSQL; if it is 0 or in use, any free port.
    pub db_port: u16,
    /// The port of Realtime, likewise.
    pub realtime_port: u16,
    /// Whether to insert the guide's examples.
    pub sample: bool,
}

/// The running stack.
pub struct Stack {
    /// The database server.
    pub postgres: PostgresServer,
    /// The Realtime server.
    pub realtime: RealtimeServer,
    /// A `service_role` key.
    pub key: Secret,
}

impl Stack {
    /// Starts everything and waits until it is ready.
    pub async fn start(options: StackOptions) -> anyhow::Result<Self> {
        let mut postgres = PostgresServer::start(PostgresOptions {
            data_dir: options.data_dir.clone(),
            port: options.db_port,
            durable: true,
            settings: Vec::new(),
        })
        .await?;
        match Self::beside(&mut postgres, &options).await {
            Ok((realtime, key)) => Ok(Self {
                postgres,
                realtime,
                key,
            }),
            Err(error) => {
                postgres.stop(StopMode::Fast).await?;
                Err(error)
            }
        }
    }

    async fn beside(
        postgres: &mut PostgresServer,
        options: &StackOptions,
    ) -> anyhow::Result<(RealtimeServer, Secret)> {
        let mut connection =
            PgConnection::connect_with(&postgres.connect_options(DATABASE)).await?;
        prepare(&mut connection).await?;
        broadcasts(&mut connection).await?;
        if options.sample {
            sqlx::raw_sql(SAMPLE)
                .execute(&mut connection)
                .await
                .context("insert the sample rows")?;
        }
        connection.close().await?;
        let secret = kept_secret(&options.data_dir.join("jwt-secret"))?;
        let key = service_key(&secret);
        let realtime = realtime(&postgres.url(DATABASE), options.realtime_port, secret).await?;
        Ok((realtime, key))
    }

    /// The URL of the database, with the password.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// Stops everything.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.realtime.stop().await;
        self.postgres.stop(StopMode::Fast).await
    }
}

/// Creates Supabase's roles and applies the migrations.
pub async fn prepare(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql(ROLES)
        .execute(&mut *connection)
        .await
        .context("create Supabase's roles")?;
    migrations::apply(connection)
        .await
        .context("apply the migrations")?;
    Ok(())
}

/// Creates what Supabase's Realtime has for broadcasts. To be called before a Realtime server is started.
pub async fn messages(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql(MESSAGES)
        .execute(&mut *connection)
        .await
        .context("create realtime.messages")?;
    Ok(())
}

/// Makes the database broadcast edits. To be called after [`prepare`], and before a Realtime server is started.
pub async fn broadcasts(connection: &mut PgConnection) -> anyhow::Result<()> {
    messages(connection).await?;
    sqlx::raw_sql(BROADCAST)
        .execute(&mut *connection)
        .await
        .context("run broadcast.sql")?;
    Ok(())
}

/// A `service_role` key for a Realtime server with this secret.
pub fn service_key(jwt_secret: &Secret) -> Secret {
    Secret::new(jwt::mint(jwt_secret, "service_role", KEY_EXPIRES_AT))
}

/// Starts a Realtime server for a database, on a port of 127.0.0.1; if that is in use, on any free port.
pub async fn realtime(
    database_url: &str,
    port: u16,
    jwt_secret: Secret,
) -> anyhow::Result<RealtimeServer> {
    let options = |port| {
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        RealtimeOptions::new(listen, database_url, jwt_secret.clone())
    };
    match RealtimeServer::start(options(port)).await {
        Err(_taken) if port != 0 => RealtimeServer::start(options(0)).await,
        started => started,
    }
}

/// The random secret that is kept in this file.
fn kept_secret(path: &Path) -> anyhow::Result<Secret> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.len() >= 32 => Ok(Secret::new(text.trim())),
        Ok(_) | Err(_) => {
            let text = format!(
                "{:032x}{:032x}",
                rand::random::<u128>(),
                rand::random::<u128>()
            );
            write_private(path, &text)?;
            Ok(Secret::new(text))
        }
    }
}
