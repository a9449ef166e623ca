//! Where it is measured: a server, a database on it that is ours alone, and the program's own processes there.
//!
//! Invariant: whatever was made is removed again, also after a failure: the embedded server's folder, or databases and roles on
//! somebody else's server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
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

/// The connections of the bench itself give up after this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A database can be dropped so long after its last user was stopped.
const DROPS_WITHIN: Duration = Duration::from_secs(20);
/// How soon that is tried again.
const DROP_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Supabase's roles, which a database with the schema has.
const ROLES: [&str; 3] = ["anon", "authenticated", "service_role"];
/// Rows end so long after they were inserted, should an agent outlive the bench.
const ROWS_LAST: &str = "1 day";

/// The job's name.
const CRON_JOB: &str = "visit-pacer bench";
/// Known where the library has been loaded, and read at a start.
const CRON_SETTING: &str = "alter system set cron.use_background_workers = 'on'";
/// Counts statements by who sends them.
const STATEMENTS: &str = "pg_stat_statements";
/// Whose statements are to be counted apart.
const COUNTED: &str = "visit_pacer_bench";

/// A server, with a fresh database for each measurement.
pub struct Ground {
    place: Place,
    made: u32,
    /// Databases that are there.
    databases: Vec<String>,
    /// Of [`ROLES`], those that were not there before.
    roles: Vec<&'static str>,
    /// Libraries that the server has loaded for us.
    loaded: Vec<&'static str>,
}

enum Place {
    /// Ours, in a folder of its own.
    Embedded {
        server: Box<PostgresServer>,
        folder: PathBuf,
    },
    /// Somebody else's.
    Given(Secret),
}

/// A database that nobody else uses, with the schema in it.
pub struct Field {
    /// Where it is, password included.
    pub url: Secret,
    name: String,
    /// Statements of whoever is told of it are counted.
    counted: bool,
    /// For questions of the bench.
    pub connection: PgConnection,
    /// Beside it, where it was started; whoever may follow the table has the key.
    pub realtime: Option<(RealtimeServer, Secret)>,
}

/// What distinguishes the rows of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// How many.
    pub count: u32,
    /// `(time_period, visits_per_unit)`, dealt out in turn.
    pub rates: &'a [(&'a str, &'a str)],
    /// When they start, from now, in seconds.
    pub start_in: i32,
    /// They start one after the other, within so many seconds before that.
    pub start_over: u32,
    /// Whether they are active.
    pub active: bool,
}

impl Ground {
    /// Starts a server of our own, which flushes to the disk as any other, or takes the one of `given`.
    pub async fn open(given: Option<Secret>) -> anyhow::Result<Self> {
        let place = match given {
            Some(url) => Place::Given(url),
            None => embedded().await?,
        };
        let mut ground = Self {
            place,
            made: 0,
            databases: Vec::new(),
            roles: Vec::new(),
            loaded: Vec::new(),
        };
        if matches!(ground.place, Place::Given(_)) {
            ground.find_roles().await?;
        }
        Ok(ground)
    }

    /// Which roles are not there yet, and whether the bench may make what it needs.
    async fn find_roles(&mut self) -> anyhow::Result<()> {
        let mut connection = connect(&self.url(None)?).await?;
        let (may, there): (bool, Vec<String>) = sqlx::query_as(
            "select rolsuper or rolcreatedb and rolcreaterole,
                    array(select rolname::text from pg_roles where rolname = any ($1))
               from pg_roles where rolname = current_user",
        )
        .bind(&ROLES[..])
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        let is_new = |role: &&str| there.iter().all(|name| name != role);
        self.roles = ROLES.into_iter().filter(is_new).collect();
        ensure!(
            may,
            "the bench makes databases and roles, which it removes again: the role of DATABASE_URL needs CREATEDB and CREATEROLE"
        );
        Ok(())
    }

    /// Whether the server keeps the moments of commits.
    pub async fn keeps_commits(&self) -> anyhow::Result<bool> {
        let mut connection = connect(&self.url(None)?).await?;
        let kept: String = sqlx::query_scalar("show track_commit_timestamp")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(kept == "on")
    }

    /// The URL of a database there.
    fn url(&self, database: Option<&str>) -> anyhow::Result<Secret> {
        match (&self.place, database) {
            (Place::Embedded { server, .. }, name) => {
                Ok(Secret::new(server.url(name.unwrap_or("postgres"))))
            }
            (Place::Given(url), None) => Ok(url.clone()),
            (Place::Given(url), Some(name)) => {
                let mut url = Url::parse(url.expose()).context("DATABASE_URL is no URL")?;
                url.set_path(name);
                Ok(Secret::new(url.as_str()))
            }
        }
    }

    /// The embedded server's process; `None` where it is not ours, and not to be measured.
    pub fn server_pid(&self) -> Option<u32> {
        match &self.place {
            Place::Embedded { server, .. } => server.pid(),
            Place::Given(_) => None,
        }
    }

    /// What this is.
    pub async fn machine(&self) -> anyhow::Result<Machine> {
        let mut connection = connect(&self.url(None)?).await?;
        let version: String = sqlx::query_scalar("show server_version")
            .fetch_one(&mut connection)
            .await?;
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(
                || "unknown".to_owned(),
                |(_, value)| value.trim().to_owned(),
            )
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Ok(Machine {
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.div_ceil(1024 * 1024),
            postgres: version,
            visit_pacer: env!("CARGO_PKG_VERSION"),
        })
    }

    /// Makes a database with the schema.
    pub async fn field(&mut self) -> anyhow::Result<Field> {
        self.made += 1;
        let name = format!("visit_pacer_bench_{}_{}", std::process::id(), self.made);
        let mut connection = connect(&self.url(None)?).await?;
        // Safe: a fixed word and two numbers.
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await
            .context("create a database for the bench; the role of DATABASE_URL needs CREATEDB")?;
        self.databases.push(name.clone());
        connection.close().await?;
        let url = self.url(Some(&name))?;
        let mut connection = connect(&url).await?;
        stack::prepare(&mut connection).await?;
        Ok(Field {
            url,
            name,
            counted: false,
            connection,
            realtime: None,
        })
    }

    /// Removes the database of a measurement.
    pub async fn clear(&mut self, field: Field) -> anyhow::Result<()> {
        if let Some((mut server, _key)) = field.realtime {
            server.stop().await;
        }
        field.connection.close().await?;
        self.remove(&field.name).await?;
        self.databases.retain(|name| *name != field.name);
        Ok(())
    }

    async fn remove(&self, database: &str) -> anyhow::Result<()> {
        let mut connection = connect(&self.url(None)?).await?;
        let drop = format!("drop database {database} with (force)");
        let asked = Instant::now();
        // A Realtime server that was stopped takes a moment to let its slot go.
        while let Err(error) = sqlx::raw_sql(AssertSqlSafe(drop.clone()))
            .execute(&mut connection)
            .await
        {
            if asked.elapsed() > DROPS_WITHIN {
                return Err(error).with_context(|| format!("drop the database {database}"));
            }
            tokio::time::sleep(DROP_AGAIN_AFTER).await;
        }
        connection.close().await?;
        Ok(())
    }

    /// Has the guide's job done each minute in the field's database; false where there is no `pg_cron`.
    pub async fn schedule_cron(&mut self, field: &mut Field) -> anyhow::Result<bool> {
        if !self.load_cron().await? {
            return Ok(false);
        }
        let mut connection = connect(&self.url(None)?).await?;
        connection
            .execute("create extension if not exists pg_cron")
            .await?;
        connection.close().await?;
        field.connection = field.connect().await?; // the server was restarted
        let mut connection = connect(&self.url(None)?).await?;
        sqlx::query("select cron.schedule_in_database($1, '* * * * *', 'select * from public.distribute_visits()', $2)")
            .bind(CRON_JOB)
            .bind(&field.name)
            .execute(&mut connection)
            .await
            .context("schedule the guide's job")?;
        connection.close().await?;
        Ok(true)
    }

    /// Takes the job away again.
    pub async fn unschedule_cron(&mut self) -> anyhow::Result<()> {
        let mut connection = connect(&self.url(None)?).await?;
        sqlx::query("select cron.unschedule($1)")
            .bind(CRON_JOB)
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(())
    }

    async fn load_cron(&mut self) -> anyhow::Result<bool> {
        Ok(self.load("pg_cron").await? && self.set(CRON_SETTING).await?)
    }

    /// Counts statements by who sends them, from now on; false where that cannot be.
    pub async fn count_statements(&mut self) -> anyhow::Result<bool> {
        self.load(STATEMENTS).await
    }

    /// Has the server load an extension's library; false where it is not installed, or the server is somebody else's, which
    /// is not restarted.
    async fn load(&mut self, library: &'static str) -> anyhow::Result<bool> {
        if self.loaded.contains(&library) {
            return Ok(true);
        }
        let mut connection = connect(&self.url(None)?).await?;
        let installed: bool = sqlx::query_scalar(
            "select exists (select from pg_available_extensions where name = $1)",
        )
        .bind(library)
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        if !installed || matches!(self.place, Place::Given(_)) {
            return Ok(false);
        }
        self.loaded.push(library);
        let setting = format!(
            "alter system set shared_preload_libraries = {}",
            self.loaded.join(", ")
        );
        self.set(&setting).await
    }

    /// Changes a setting of a server of our own, and restarts it.
    async fn set(&mut self, setting: &str) -> anyhow::Result<bool> {
        let mut connection = connect(&self.url(None)?).await?;
        let Place::Embedded { server, .. } = &mut self.place else {
            return Ok(false);
        };
        // Safe: our own words.
        sqlx::raw_sql(AssertSqlSafe(setting.to_owned()))
            .execute(&mut connection)
            .await
            .with_context(|| setting.to_owned())?;
        connection.close().await?;
        server.stop(StopMode::Fast).await?;
        server.start_again().await?;
        Ok(true)
    }

    /// Stops and removes what was started.
    pub async fn close(self) -> anyhow::Result<()> {
        if matches!(self.place, Place::Given(_)) {
            for name in &self.databases {
                self.remove(name).await?;
            }
            let mut connection = connect(&self.url(None)?).await?;
            for role in &self.roles {
                // Safe: our own words.
                let drop = AssertSqlSafe(format!("drop role if exists {role}"));
                let dropped = sqlx::raw_sql(drop).execute(&mut connection).await;
                dropped.with_context(|| format!("drop the role {role}"))?;
            }
            connection.close().await?;
        }
        if let Place::Embedded { mut server, folder } = self.place {
            server.stop(StopMode::Fast).await?;
            drop(server);
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("remove {}", folder.display()))?;
        }
        Ok(())
    }
}

async fn embedded() -> anyhow::Result<Place> {
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
    Ok(Place::Embedded { server, folder })
}

/// A connection of the bench.
pub async fn connect(url: &Secret) -> anyhow::Result<PgConnection> {
    let options = Database::from_url(url)?.options().clone();
    // Questions about a million rows take their time.
    let options = options.disable_statement_logging();
    let connecting = PgConnection::connect_with(&options);
    let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
    connected
        .context("the database does not answer")?
        .context("connect to the database")
}

impl Field {
    /// Another connection.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        connect(&self.url).await
    }

    /// Starts a Realtime server of our own beside it, unless the server decodes nothing (`wal_level`).
    pub async fn starts_realtime(&mut self) -> anyhow::Result<()> {
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

    /// Inserts rows, each of one of a hundred partners, and says when they start.
    pub async fn rows(&mut self, rows: Rows<'_>) -> anyhow::Result<DbTime> {
        let (periods, rates): (Vec<&str>, Vec<&str>) = rows.rates.iter().copied().unzip();
        sqlx::raw_sql(
            "insert into public.partners (id, name)
             select md5('bench' || n)::uuid, 'Bench ' || n from generate_series(1, 100) n on conflict (id) do nothing",
        )
        .execute(&mut self.connection)
        .await?;
        let starts: Option<i64> = sqlx::query_scalar(
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
        .bind(i32::try_from(rows.count)?)
        .bind(periods)
        .bind(rates)
        .bind(f64::from(rows.start_in))
        .bind(rows.active)
        .bind(f64::from(rows.start_over))
        .bind(ROWS_LAST)
        .fetch_one(&mut self.connection)
        .await
        .context("insert rows")?;
        sqlx::raw_sql(
            "vacuum (analyze) public.visit_distribution, public.visit_distribution_progress",
        )
        .execute(&mut self.connection)
        .await?;
        starts
            .map(DbTime::from_micros)
            .context("no moment to start at")
    }

    /// What the database's clock says.
    pub async fn now(&mut self) -> anyhow::Result<DbTime> {
        let now: i64 =
            sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
                .fetch_one(&mut self.connection)
                .await?;
        Ok(DbTime::from_micros(now))
    }

    /// Waits until the database's clock has passed `at`.
    pub async fn reach(&mut self, at: DbTime) -> anyhow::Result<()> {
        let left = at.micros_since(self.now().await?);
        tokio::time::sleep(Duration::from_micros(u64::try_from(left).unwrap_or(0))).await;
        Ok(())
    }

    /// From now on whoever is told of the field comes as somebody of his own, whose statements are counted.
    pub async fn is_counted(&mut self) -> anyhow::Result<()> {
        let password = format!("{:032x}", rand::random::<u128>());
        // Safe: our own words, and hexadecimal digits.
        let sql = format!(
            "create extension {STATEMENTS};
             drop role if exists {COUNTED};
             create role {COUNTED} superuser login password '{password}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut self.connection)
            .await
            .context("count statements")?;
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

    /// Statements that were sent since by whoever is counted; `None` where nobody is.
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

    /// Transactions that were committed in this database.
    pub async fn transactions(&mut self) -> anyhow::Result<i64> {
        let count = sqlx::query_scalar(
            "select xact_commit from pg_stat_database where datname = current_database()",
        );
        Ok(count.fetch_one(&mut self.connection).await?)
    }

    /// When each visit that belongs to no row was committed, in order. Needs `track_commit_timestamp`.
    pub async fn plain_commits(&mut self) -> anyhow::Result<Vec<i64>> {
        let commits = sqlx::query_scalar(
            "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
               from public.store_visits where distribution_id is null order by 1",
        );
        Ok(commits.fetch_all(&mut self.connection).await?)
    }

    /// When each visit was committed: by row, in the order of commits. Needs `track_commit_timestamp`.
    pub async fn commits(&mut self) -> anyhow::Result<Vec<(Uuid, DbTime)>> {
        let rows = sqlx::query(
            "select distribution_id as row, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint as at
               from public.store_visits where distribution_id is not null order by 1, 2",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("row")?, DbTime::from_micros(row.try_get("at")?))))
            .collect()
    }
}
