//! Postgres and Realtime together, with the schema, the roles that Supabase has, and a key.

use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};

use super::jwt;
use super::realtime_server::{RealtimeOptions, RealtimeServer};
use super::server::{PostgresOptions, PostgresServer, StopMode};
use crate::domain::secret::Secret;
use crate::postgres::migrations;

/// The database of the demo, named as Supabase names its own.
pub const DATABASE: &str = "postgres";

/// The keys of the demo are good until the year 2100, in seconds since the Unix epoch.
const KEY_EXPIRES_AT: i64 = 4_102_444_800;

/// The roles that `PostgREST` and Realtime act as on Supabase.
const ROLES: &str = "
  do $$ begin
    if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if;
    if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if;
    if not exists (select from pg_roles where rolname = 'service_role') then create role service_role nologin bypassrls; end if;
  end $$;
  grant usage on schema public to anon, authenticated, service_role";

/// What broadcasts from the database need.
const MESSAGES: &str = include_str!("messages.sql");
/// Edits as broadcasts.
const BROADCAST: &str = include_str!("../../deploy/supabase/broadcast.sql");

/// Two partners and the guide's two examples, where nothing runs.
const SAMPLE: &str = include_str!("sample.sql");

/// What to start.
pub struct StackOptions {
    /// Where everything is kept between runs.
    pub data_dir: PathBuf,
    /// Postgres's port; 0, or one that is taken: any free one.
    pub db_port: u16,
    /// Realtime's, likewise.
    pub realtime_port: u16,
    /// Whether the guide's examples are to run.
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
    /// Starts everything, and waits until it is ready.
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

    /// Where the database is, password included.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// Stops everything.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.realtime.stop().await;
        self.postgres.stop(StopMode::Fast).await
    }
}

/// Makes Supabase's roles and our schema.
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

/// Makes what Supabase's Realtime has for broadcasts; before a Realtime server is started.
pub async fn messages(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql(MESSAGES)
        .execute(&mut *connection)
        .await
        .context("create realtime.messages")?;
    Ok(())
}

/// Has edits broadcast from the database; after [`prepare`], and before a Realtime server is started.
pub async fn broadcasts(connection: &mut PgConnection) -> anyhow::Result<()> {
    messages(connection).await?;
    sqlx::raw_sql(BROADCAST)
        .execute(&mut *connection)
        .await
        .context("run broadcast.sql")?;
    Ok(())
}

/// A `service_role` key that such a Realtime server accepts.
pub fn service_key(jwt_secret: &Secret) -> Secret {
    Secret::new(jwt::mint(jwt_secret, "service_role", KEY_EXPIRES_AT))
}

/// A Realtime server for a database, on a port of 127.0.0.1; where that is taken, on any free one.
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

/// A random secret that is kept in a file only its owner can read.
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

/// Writes a file that only its owner can read, all at once.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let fresh = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    written().with_context(|| format!("write {}", path.display()))
}
