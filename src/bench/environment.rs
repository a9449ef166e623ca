//! Where it is measured: a PostgreSQL server, and a database of its own for each measurement.
//!
//! Invariant: everything that was created is removed, also after a failure: the embedded server's folder, or the databases and
//! roles on another server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::postgres::PgRow;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _,
};
use url::Url;
use uuid::Uuid;

use super::figures::Machine;
use crate::demo::realtime_server::RealtimeServer;
use crate::demo::server::{PostgresOptions, PostgresServer, StopMode, default_data_dir};
use crate::demo::stack;
use crate::domain::secret::Secret;
use crate::domain::time::DbTime;
use crate::postgres::reconnect::Database;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dropping a database may take: a Realtime server that was stopped keeps its slot for a moment.
const DROP_TIMEOUT: Duration = Duration::from_secs(20);
const DROP_RETRY: Duration = Duration::from_millis(100);

/// Supabase's roles, which a database with the schema needs.
const ROLES: [&str; 3] = ["anon", "authenticated", "service_role"];
/// When distributions end after they were inserted, should an agent outlive the benchmark.
const ROWS_LAST: &str = "1 day";

/// The name of the cron job.
const CRON_JOB: &str = "visit-pacer bench";
/// Known only after the library has been loaded, and read at a start.
const CRON_SETTING: &str = "alter system set cron.use_background_workers = 'on'";
/// Counts statements by role.
const STATEMENTS: &str = "pg_stat_statements";
/// The role whose statements are counted.
const COUNTED: &str = "visit_pacer_bench";

/// A server, with a new database for each measurement.
pub struct BenchEnvironment {
    server: BenchServer,
    created: u32,
    databases: Vec<String>,
    /// Those of [`ROLES`] that did not exist before.
    roles: Vec<&'static str>,
    /// Libraries that the server loads for the benchmark.
    loaded: Vec<&'static str>,
}

enum BenchServer {
    /// A server of its own, in this folder.
    Embedded {
        server: Box<PostgresServer>,
        folder: PathBuf,
    },
    /// The server of `DATABASE_URL`.
    Given(Secret),
}

/// A database for one measurement, with the schema in it.
pub struct BenchDatabase {
    /// Its URL with the password, for the measured programs.
    pub url: Secret,
    name: String,
    /// Whether the statements of the programs are counted.
    counted: bool,
    /// For the benchmark's own queries.
    pub connection: PgConnection,
    /// The Realtime server of this database, if one was started, and its key.
    pub realtime: Option<(RealtimeServer, Secret)>,
}

/// The distributions of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// How many.
    pub count: u32,
    /// `(time_period, visits_per_unit)`, in turn.
    pub rates: &'a [(&'a str, &'a str)],
    /// When they start, from now, in seconds.
    pub start_in: i32,
    /// Their starts are spread over this many seconds before that.
    pub start_over: u32,
    /// Whether they are active.
    pub active: bool,
}

impl<'a> Workload<'a> {
    /// Active distributions that started a second ago.
    pub fn running(count: u32, rates: &'a [(&'a str, &'a str)]) -> Self {
        Self {
            count,
            rates,
            start_in: -1,
            start_over: 0,
            active: true,
        }
    }
}

impl BenchEnvironment {
    /// Starts a server with a durable disk configuration, or uses the server of `given`.
    pub async fn open(given: Option<Secret>) -> anyhow::Result<Self> {
        let server = match given {
            Some(url) => BenchServer::Given(url),
            None => embedded().await?,
        };
        let mut environment = Self {
            server,
            created: 0,
            databases: Vec::new(),
            roles: Vec::new(),
            loaded: Vec::new(),
        };
        if environment.is_given() {
            environment.find_roles().await?;
        }
        Ok(environment)
    }

    fn is_given(&self) -> bool {
        matches!(self.server, BenchServer::Given(_))
    }

    /// Which roles are missing, and whether the benchmark may create them.
    async fn find_roles(&mut self) -> anyhow::Result<()> {
        let (may, existing): (bool, Vec<String>) = sqlx::query_as(
            "select rolsuper or rolcreatedb and rolcreaterole,
                    array(select rolname::text from pg_roles where rolname = any ($1))
               from pg_roles where rolname = current_user",
        )
        .bind(&ROLES[..])
        .fetch_one(&mut self.connect().await?)
        .await?;
        let is_new = |role: &&str| existing.iter().all(|name| name != role);
        self.roles = ROLES.into_iter().filter(is_new).collect();
        ensure!(
            may,
            "the benchmark creates databases and roles, and removes them: the role of DATABASE_URL needs CREATEDB and CREATEROLE"
        );
        Ok(())
    }

    /// Whether the server records commit times.
    pub async fn has_commit_times(&self) -> anyhow::Result<bool> {
        let setting: String = sqlx::query_scalar("show track_commit_timestamp")
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(setting == "on")
    }

    /// The URL of a database of the server; by default of the one that is always there.
    fn url(&self, database: Option<&str>) -> anyhow::Result<Secret> {
        match (&self.server, database) {
            (BenchServer::Embedded { server, .. }, name) => {
                Ok(Secret::new(server.url(name.unwrap_or("postgres"))))
            }
            (BenchServer::Given(url), None) => Ok(url.clone()),
            (BenchServer::Given(url), Some(name)) => {
                let mut url = Url::parse(url.expose()).context("DATABASE_URL is no URL")?;
                url.set_path(name);
                Ok(Secret::new(url.as_str()))
            }
        }
    }

    /// A connection to the database that is always there.
    async fn connect(&self) -> anyhow::Result<PgConnection> {
        connect(&self.url(None)?).await
    }

    /// The embedded server's process; `None` for another server, which is not measured.
    pub fn server_pid(&self) -> Option<u32> {
        match &self.server {
            BenchServer::Embedded { server, .. } => server.pid(),
            BenchServer::Given(_) => None,
        }
    }

    /// The machine and the versions.
    pub async fn machine(&self) -> anyhow::Result<Machine> {
        let version: String = sqlx::query_scalar("show server_version")
            .fetch_one(&mut self.connect().await?)
            .await?;
        let value = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
            value.unwrap_or_else(|| "unknown".to_owned())
        };
        let memory = value("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Ok(Machine {
            cpu: value("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.div_ceil(1024 * 1024),
            postgres: version,
            visit_pacer: env!("CARGO_PKG_VERSION"),
        })
    }

    /// Creates a database with the schema.
    pub async fn database(&mut self) -> anyhow::Result<BenchDatabase> {
        self.created += 1;
        let name = format!("visit_pacer_bench_{}_{}", std::process::id(), self.created);
        execute(
            &mut self.connect().await?,
            format!("create database {name}"),
        )
        .await?;
        self.databases.push(name.clone());
        let url = self.url(Some(&name))?;
        let mut connection = connect(&url).await?;
        stack::prepare(&mut connection).await?;
        Ok(BenchDatabase {
            url,
            name,
            counted: false,
            connection,
            realtime: None,
        })
    }

    /// Removes the database of a measurement.
    pub async fn remove(&mut self, database: BenchDatabase) -> anyhow::Result<()> {
        if let Some((mut server, _key)) = database.realtime {
            server.stop().await;
        }
        database.connection.close().await?;
        self.drop_database(&database.name).await?;
        self.databases.retain(|name| *name != database.name);
        Ok(())
    }

    async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let began = Instant::now();
        loop {
            let drop = format!("drop database {name} with (force)");
            match execute(&mut connection, drop).await {
                Err(_used) if began.elapsed() < DROP_TIMEOUT => {
                    tokio::time::sleep(DROP_RETRY).await;
                }
                ended => return ended,
            }
        }
    }

    /// Runs the guide's job each minute in the database; false where there is no `pg_cron`.
    pub async fn schedule_cron(&mut self, database: &mut BenchDatabase) -> anyhow::Result<bool> {
        if !self.load("pg_cron").await? || !self.set(CRON_SETTING.to_owned()).await? {
            return Ok(false);
        }
        database.connection = database.connect().await?; // the server was restarted
        let mut connection = self.connect().await?;
        connection
            .execute("create extension if not exists pg_cron")
            .await?;
        sqlx::query("select cron.schedule_in_database($1, '* * * * *', 'select * from public.distribute_visits()', $2)")
            .bind(CRON_JOB)
            .bind(&database.name)
            .execute(&mut connection)
            .await
            .context("schedule the guide's job")?;
        Ok(true)
    }

    /// Removes the job.
    pub async fn unschedule_cron(&mut self) -> anyhow::Result<()> {
        let unschedule = sqlx::query("select cron.unschedule($1)").bind(CRON_JOB);
        unschedule.execute(&mut self.connect().await?).await?;
        Ok(())
    }

    /// Has the server count statements by role; false where that is not possible.
    pub async fn count_statements(&mut self) -> anyhow::Result<bool> {
        self.load(STATEMENTS).await
    }

    /// Has the server load an extension's library; false where it is not installed, or the server is not the embedded one,
    /// which alone may be restarted.
    async fn load(&mut self, library: &'static str) -> anyhow::Result<bool> {
        if self.loaded.contains(&library) {
            return Ok(true);
        }
        let installed: bool = sqlx::query_scalar(
            "select exists (select from pg_available_extensions where name = $1)",
        )
        .bind(library)
        .fetch_one(&mut self.connect().await?)
        .await?;
        if !installed || self.is_given() {
            return Ok(false);
        }
        self.loaded.push(library);
        let libraries = self.loaded.join(", ");
        self.set(format!(
            "alter system set shared_preload_libraries = {libraries}"
        ))
        .await
    }

    /// Changes a setting of the embedded server, and restarts it.
    async fn set(&mut self, setting: String) -> anyhow::Result<bool> {
        let mut connection = self.connect().await?;
        let BenchServer::Embedded { server, .. } = &mut self.server else {
            return Ok(false);
        };
        execute(&mut connection, setting).await?;
        connection.close().await?;
        server.stop(StopMode::Fast).await?;
        server.start_again().await?;
        Ok(true)
    }

    /// Stops and removes everything that was created.
    pub async fn close(self) -> anyhow::Result<()> {
        if self.is_given() {
            for name in &self.databases {
                self.drop_database(name).await?;
            }
            let mut connection = self.connect().await?;
            for role in &self.roles {
                execute(&mut connection, format!("drop role if exists {role}")).await?;
            }
        }
        if let BenchServer::Embedded { mut server, folder } = self.server {
            server.stop(StopMode::Fast).await?;
            drop(server);
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("remove {}", folder.display()))?;
        }
        Ok(())
    }
}

async fn embedded() -> anyhow::Result<BenchServer> {
    let demo = default_data_dir()?;
    let folder = demo.with_file_name(format!("bench-{}", std::process::id()));
    let settings = [
        ("track_commit_timestamp", "on"),
        ("max_wal_size", "8GB"),
        ("shared_buffers", "1GB"),
        ("checkpoint_timeout", "30min"),
    ];
    let server = PostgresServer::start(PostgresOptions {
        data_dir: folder.clone(),
        port: 0,
        durable: true,
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    })
    .await?;
    let server = Box::new(server);
    Ok(BenchServer::Embedded { server, folder })
}

/// A connection of the benchmark.
async fn connect(url: &Secret) -> anyhow::Result<PgConnection> {
    // Queries of a million rows are slow, and not worth a warning.
    let options = Database::from_url(url)?.options().clone();
    let options = options.disable_statement_logging();
    let connecting = PgConnection::connect_with(&options);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected
        .context("the database does not answer")?
        .context("connect to the database")
}

/// Runs statements that take no parameters. Safe: they consist of constants, numbers and hexadecimal digits.
async fn execute(connection: &mut PgConnection, sql: String) -> anyhow::Result<()> {
    let run = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(connection);
    run.await.with_context(|| sql)?;
    Ok(())
}

impl BenchDatabase {
    /// Another connection.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        connect(&self.url).await
    }

    /// Starts a Realtime server for the database, if the server has `wal_level = logical`.
    pub async fn start_realtime(&mut self) -> anyhow::Result<()> {
        let level: String = sqlx::query_scalar("show wal_level")
            .fetch_one(&mut self.connection)
            .await?;
        if level != "logical" {
            return Ok(());
        }
        let secret = Secret::new(format!("{:032x}", rand::random::<u128>()));
        let key = stack::service_key(&secret);
        let server = stack::realtime(self.url.expose(), 0, secret).await?;
        self.realtime = Some((server, key));
        Ok(())
    }

    /// Inserts distributions over a hundred partners, and returns when they start.
    pub async fn insert(&mut self, workload: Workload<'_>) -> anyhow::Result<DbTime> {
        let (periods, rates): (Vec<&str>, Vec<&str>) = workload.rates.iter().copied().unzip();
        sqlx::raw_sql(
            "insert into public.partners (id, name)
             select md5('bench' || n)::uuid, 'Bench ' || n from generate_series(1, 100) n on conflict (id) do nothing",
        )
        .execute(&mut self.connection)
        .await?;
        let starts: i64 = sqlx::query_scalar(
            "with start as materialized (
               select date_trunc('second', clock_timestamp()) + make_interval(secs => $4) as at
             ), made as (
               insert into public.visit_distribution
                      (partner_id, total_visits, time_period, visits_per_unit, is_active, start_time, end_time)
               select md5('bench' || 1 + n % 100)::uuid, 1000000000, $2[1 + n % cardinality($2)],
                      $3[1 + n % cardinality($3)]::numeric, $5, start.at - make_interval(secs => $6 * n / $1), start.at + $7::interval
                 from generate_series(0, $1 - 1) n, start
             )
             select (extract(epoch from at) * 1000000)::bigint from start",
        )
        .bind(i32::try_from(workload.count)?)
        .bind(periods)
        .bind(rates)
        .bind(f64::from(workload.start_in))
        .bind(workload.active)
        .bind(f64::from(workload.start_over))
        .bind(ROWS_LAST)
        .fetch_one(&mut self.connection)
        .await
        .context("insert distributions")?;
        sqlx::raw_sql(
            "vacuum (analyze) public.visit_distribution, public.visit_distribution_progress",
        )
        .execute(&mut self.connection)
        .await?;
        Ok(DbTime::from_micros(starts))
    }

    /// A number that a query without parameters returns.
    pub async fn number(&mut self, query: &'static str) -> anyhow::Result<i64> {
        let number = sqlx::query_scalar(query).fetch_one(&mut self.connection);
        number.await.context(query)
    }

    /// Waits until the database's clock has passed `at`.
    pub async fn wait_until(&mut self, at: DbTime) -> anyhow::Result<()> {
        let now = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
        let left = at.micros_since(DbTime::from_micros(self.number(now).await?));
        tokio::time::sleep(Duration::from_micros(u64::try_from(left).unwrap_or(0))).await;
        Ok(())
    }

    /// From now on [`Self::url`] names a role of its own, whose statements are counted.
    pub async fn count_statements(&mut self) -> anyhow::Result<()> {
        let password = format!("{:032x}", rand::random::<u128>());
        let sql = format!(
            "create extension {STATEMENTS};
             drop role if exists {COUNTED};
             create role {COUNTED} superuser login password '{password}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut self.connection)
            .await
            .context("count statements")?; // the statements hold a password
        let mut url = Url::parse(self.url.expose()).context("the URL of the database")?;
        let named = url
            .set_username(COUNTED)
            .and_then(|()| url.set_password(Some(&password)));
        ensure!(
            named.is_ok(),
            "the URL of the database has no place for a user"
        );
        self.url = Secret::new(url.as_str());
        self.counted = true;
        Ok(())
    }

    /// Statements of the counted role so far; `None` where they are not counted.
    pub async fn statements(&mut self) -> anyhow::Result<Option<i64>> {
        if !self.counted {
            return Ok(None);
        }
        let count = sqlx::query_scalar(
            "select coalesce(sum(s.calls), 0)::bigint from pg_stat_statements s join pg_roles r on r.oid = s.userid
              where r.rolname = $1",
        );
        let count = count.bind(COUNTED).fetch_one(&mut self.connection);
        Ok(Some(count.await?))
    }

    /// Commit times of the visits without a distribution, in order. Needs `track_commit_timestamp`.
    pub async fn plain_commits(&mut self) -> anyhow::Result<Vec<i64>> {
        let commits = sqlx::query_scalar(
            "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
               from public.store_visits where distribution_id is null order by 1",
        );
        Ok(commits.fetch_all(&mut self.connection).await?)
    }

    /// Distribution and commit time of each visit, in this order. Needs `track_commit_timestamp`.
    pub async fn commits(&mut self) -> anyhow::Result<Vec<(Uuid, DbTime)>> {
        let commits = sqlx::query(
            "select distribution_id, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
               from public.store_visits where distribution_id is not null order by 1, 2",
        )
        .try_map(|row: PgRow| Ok((row.try_get(0)?, DbTime::from_micros(row.try_get(1)?))));
        Ok(commits.fetch_all(&mut self.connection).await?)
    }
}
