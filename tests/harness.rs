//! What every test of the contract stands on: a place of its own, with a database, a Realtime server, and agents that are the
//! real program as a process.
//!
//! Owns the waiting (conditions with a generous bound, never a fixed time), what is asked of the database at a look, and the
//! seats that keep timing-sensitive tests from starving each other. The server is `harness/server.rs`, the process
//! `harness/agent.rs`, the second subscriber `harness/subscriber.rs`, the network that breaks `harness/proxy.rs`, the pooler in
//! between `harness/pooler.rs`.
//!
//! Invariant: a place that ends has shown every log of its agents to be free of panics, keys and passwords.

pub mod agent;
pub mod pooler;
pub mod proxy;
pub mod server;
pub mod subscriber;

use std::fmt::Display;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::{PgDatabaseError, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, PgPool, Postgres, Row as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use uuid::Uuid;
use visit_pacer::demo::realtime_server::RealtimeServer;
use visit_pacer::demo::server::PostgresServer;
use visit_pacer::demo::stack;
use visit_pacer::domain::secret::Secret;

pub use self::agent::{Agent, Outcome};
use self::pooler::Pooler;
use self::proxy::Proxy;
use self::server::Scratch;

/// Places at once: more would starve each other of two cores.
const SEATS: usize = 4;
static SEAT: Semaphore = Semaphore::const_new(SEATS);

/// How long anything may take that takes a moment on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether the long forms of the tests were asked for.
pub fn long() -> bool {
    std::env::vars().any(|(name, value)| name == "VISIT_PACER_TEST_LONG" && value == "1")
}

/// Waits until `look` finds something; fails after `limit`, saying what was waited for.
pub async fn find<T>(
    what: impl Display,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until `look` is true.
pub async fn wait_until(what: impl Display, limit: Duration, mut look: impl AsyncFnMut() -> bool) {
    find(what, limit, async || look().await.then_some(())).await;
}

/// An SQLSTATE, and the message with its hint, of what the database refused.
pub fn refusal(error: &sqlx::Error) -> (String, String) {
    let error = error
        .as_database_error()
        .unwrap_or_else(|| panic!("refused by the database, not: {error}"));
    let hint = error
        .downcast_ref::<PgDatabaseError>()
        .hint()
        .unwrap_or_default();
    (
        error.code().unwrap_or_default().into_owned(),
        format!("{}; {hint}", error.message()),
    )
}

/// The port that a URL names.
pub fn port(url: &str) -> u16 {
    let url = url::Url::parse(url).expect("a URL");
    url.port().expect("a port")
}

/// One look at a row: a single statement, so all of it is of one snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// The status view's.
    pub status: String,
    /// The status view's.
    pub reason: Option<String>,
    /// The status view's.
    pub total_visits: i64,
    /// The status view's.
    pub due: Option<i64>,
    /// The status view's.
    pub distributed: i64,
    /// What is stored in `store_visits`.
    pub stored: i64,
    /// What the user's own column says.
    pub total_distributed: i64,
    /// What was stored more than an echo interval ago (of two rows, with two seconds of grace).
    pub stored_an_echo_ago: i64,
}

impl FromRow<'_, PgRow> for Look {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            status: row.try_get("status")?,
            reason: row.try_get("reason")?,
            total_visits: row.try_get("total_visits")?,
            due: row.try_get("due")?,
            distributed: row.try_get("distributed")?,
            stored: row.try_get("stored")?,
            total_distributed: row.try_get("total_distributed")?,
            stored_an_echo_ago: row.try_get("stored_an_echo_ago")?,
        })
    }
}

/// Connections for edits and looks, a Realtime server, a key that it accepts, and the secret behind that key.
async fn reach(url: &str) -> (PgPool, RealtimeServer, Secret, Secret) {
    let db = PgPoolOptions::new()
        .max_connections(4)
        .connect(url)
        .await
        .expect("the database answers");
    let secret = Secret::new(format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    ));
    let key = stack::service_key(&secret);
    let realtime = stack::realtime(url, 0, secret.clone())
        .await
        .expect("a Realtime server");
    (db, realtime, key, secret)
}

/// A database with our schema, a Realtime server for it, and a partner to visit.
pub struct Place {
    /// For edits and looks, as the owner of everything.
    pub db: PgPool,
    /// Realtime.
    pub realtime: RealtimeServer,
    /// The server, where it is this place's alone.
    pub server: Option<PostgresServer>,
    /// The database, password included.
    pub url: String,
    /// What agents and commands go through.
    pub pooler: Option<Pooler>,
    /// A key that Realtime accepts.
    pub key: Secret,
    /// What such keys are signed with.
    pub jwt_secret: Secret,
    /// A partner.
    pub partner: Uuid,
    /// A folder of its own.
    pub folder: Scratch,
    _seat: SemaphorePermit<'static>,
}

impl Place {
    /// On the server that all tests share.
    pub async fn new() -> Self {
        let seat = SEAT.acquire().await.expect("never closed");
        let url = server::shared().migrated().await;
        Self::at(url, None, seat).await
    }

    /// On the shared server, over a database that somebody else made; our schema is added to it.
    pub async fn over(url: String) -> Self {
        let seat = SEAT.acquire().await.expect("never closed");
        let mut connection = PgConnection::connect(&url).await.expect("a connection");
        stack::prepare(&mut connection).await.expect("the schema");
        connection.close().await.expect("a goodbye");
        Self::at(url, None, seat).await
    }

    /// On a server of its own, to be stopped and started.
    pub async fn apart() -> Self {
        let seat = SEAT.acquire().await.expect("never closed");
        let folder = Scratch::new();
        let server = server::start(folder.path().join("postgres")).await;
        let url = server::prepared(&server, "place").await;
        Self::at(url, Some((server, folder)), seat).await
    }

    async fn at(
        url: String,
        own: Option<(PostgresServer, Scratch)>,
        seat: SemaphorePermit<'static>,
    ) -> Self {
        let (db, realtime, key, jwt_secret) = reach(&url).await;
        let (server, folder) = own.map_or_else(
            || (None, Scratch::new()),
            |(server, folder)| (Some(server), folder),
        );
        let partner = Uuid::from_u128(rand::random());
        let place = Self {
            db,
            realtime,
            server,
            url,
            pooler: None,
            key,
            jwt_secret,
            partner,
            folder,
            _seat: seat,
        };
        place
            .edit(format!("insert into partners (id) values ('{partner}')"))
            .await;
        place
    }

    /// From now on everybody reaches the database by way of the proxy: looks and edits, Realtime, and agents to come.
    pub async fn by_way_of(&mut self, proxy: &Proxy) {
        self.url = proxy.url(&self.url);
        (self.db, self.realtime, self.key, self.jwt_secret) = reach(&self.url).await;
    }

    /// The port of its server.
    pub fn port(&self) -> u16 {
        port(&self.url)
    }

    /// The database as agents and commands reach it, password included.
    pub fn agents_url(&self) -> String {
        let pooled = self.pooler.as_ref().map(|pooler| pooler.url(&self.url));
        pooled.unwrap_or_else(|| self.url.clone())
    }

    /// What an agent is told of this place.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("DATABASE_URL", self.agents_url().as_str()),
            ("SUPABASE_URL", &self.realtime.supabase_url()),
            ("SUPABASE_SERVICE_ROLE_KEY", self.key.expose()),
            ("VISIT_PACER_LISTEN", "127.0.0.1:0"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    /// An agent that has started; see [`Agent::ready`].
    pub async fn start_agent(&self) -> Agent {
        Agent::start(&self.folder, &["run"], &self.environment()).await
    }

    /// An agent that has started, and looks for the database at that URL.
    pub async fn start_agent_at(&self, url: &str) -> Agent {
        let mut environment = self.environment();
        environment.retain(|(name, _)| name != "DATABASE_URL");
        environment.push(("DATABASE_URL".to_owned(), url.to_owned()));
        Agent::start(&self.folder, &["run"], &environment).await
    }

    /// An agent that is ready.
    pub async fn agent(&self) -> Agent {
        let agent = self.start_agent().await;
        agent.ready().await;
        agent
    }

    /// Runs one of the program's commands.
    pub async fn command(&self, arguments: &[&str]) -> Outcome {
        agent::command(&self.folder, arguments, &self.environment()).await
    }

    /// Runs SQL; fails with the database's words.
    pub async fn edit(&self, sql: impl Into<String>) {
        self.try_edit(sql).await.expect("the edit is let through");
    }

    /// Runs SQL.
    pub async fn try_edit(&self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.into()))
            .execute(&self.db)
            .await
            .map(|_| ())
    }

    /// Asks for one value.
    pub async fn ask<T>(&self, sql: impl Into<String>) -> T
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        let sql = sql.into();
        sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .fetch_one(&self.db)
            .await
            .unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Inserts a row that starts now: so many visits, at a pace such as `"33.33 a minute"`, in a window such as
    /// `"interval '1 hour'"` or `"null"`.
    pub async fn insert(&self, total: i64, pace: &str, window: &str) -> Uuid {
        let (rate, unit) = pace.split_once(" a ").expect("a pace is `NUMBER a UNIT`");
        self.ask(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
             values ('{}', {total}, '{unit}', {rate}, now(), now() + {window}) returning id",
            self.partner
        ))
        .await
    }

    /// Changes a row.
    pub async fn set(&self, id: Uuid, assignments: &str) {
        self.edit(format!(
            "update visit_distribution set {assignments} where id = '{id}'"
        ))
        .await;
    }

    /// Looks at a row.
    pub async fn look(&self, id: Uuid) -> Look {
        sqlx::query_as(
            "select s.status, s.reason, s.total_visits::bigint as total_visits, s.due, s.distributed,
                    (select count(*) from store_visits v where v.distribution_id = s.id) as stored,
                    d.total_distributed::bigint as total_distributed,
                    (select count(*) from store_visits v where v.distribution_id = s.id
                        and v.created_at < clock_timestamp() - interval '12 seconds') as stored_an_echo_ago
               from visit_distribution_status s join visit_distribution d on d.id = s.id where s.id = $1",
        )
        .bind(id)
        .fetch_one(&self.db)
        .await
        .expect("the row is there")
    }

    /// Visits stored for a row, also one that is gone.
    pub async fn stored(&self, id: Uuid) -> i64 {
        self.ask(format!(
            "select count(*) from store_visits where distribution_id = '{id}'"
        ))
        .await
    }

    /// Waits until a row has at least so many visits; says how many it then has.
    pub async fn has_stored(&self, id: Uuid, visits: i64) -> i64 {
        find(format!("{visits} visits of {id}"), PATIENCE, async || {
            let stored = self.stored(id).await;
            (stored >= visits).then_some(stored)
        })
        .await
    }

    /// Waits until a row has that status.
    pub async fn becomes(&self, id: Uuid, status: &str) -> Look {
        self.becomes_within(id, status, PATIENCE).await
    }

    /// Waits so long until a row has that status.
    pub async fn becomes_within(&self, id: Uuid, status: &str, limit: Duration) -> Look {
        find(format!("{id} is {status}"), limit, async || {
            let look = self.look(id).await;
            (look.status == status).then_some(look)
        })
        .await
    }

    /// Lets the agents work for so many more seconds of DB time: until a live agent has been seen after that.
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

    /// Notes from now on for which instant each batch is; [`Self::densest`] needs it.
    pub async fn notes_fires(&self) {
        self.edit(
            "create table fires (distribution_id uuid, at timestamptz, visits bigint);
             create function note_fire() returns trigger language plpgsql as $$ begin
               insert into public.fires values (new.distribution_id, new.bucket_at, new.distributed - old.distributed);
               return null;
             end $$;
             create trigger note_fire after update on visit_distribution_progress for each row
               when (new.last_number > old.last_number) execute function note_fire()",
        )
        .await;
    }

    /// The most visits of a row within any span of that length, by the instants that its batches are for: a machine that is
    /// slow to store one makes no difference.
    pub async fn densest(&self, id: Uuid, span: &str) -> i64 {
        self.ask(format!(
            "select coalesce(max(n), 0)::bigint from (
               select sum(visits) over (order by at range between current row and interval '{span}' following) as n
                 from fires where distribution_id = '{id}') spans"
        ))
        .await
    }

    /// Waits until what is stored is what is due, and stays so; then checks the ledger.
    pub async fn settles(&self, id: Uuid) -> i64 {
        let look = find(format!("{id} has what is due"), PATIENCE, async || {
            let look = self.look(id).await;
            (Some(look.stored) == look.due).then_some(look)
        })
        .await;
        assert_eq!(
            look.distributed, look.stored,
            "the counter agrees with what is stored: {look:?}"
        );
        self.ledger_is_sound(id).await;
        look.stored
    }

    /// Ends a running row some two seconds from now, by its total; waits for that, and gives the total: every visit that
    /// was due until then is stored, once.
    pub async fn finishes(&self, id: Uuid) -> i64 {
        self.set(
            id,
            &format!(
                "total_visits = visit_distribution_due('{id}', clock_timestamp() + interval '2 seconds')"
            ),
        )
        .await;
        let look = self.becomes(id, "completed").await;
        assert_eq!(self.settles(id).await, look.total_visits, "{look:?}");
        look.total_visits
    }

    /// The same of several rows at once.
    pub async fn finish(&self, rows: &[Uuid]) {
        join_all(rows.iter().map(|row| self.finishes(*row))).await;
    }

    /// Numbers run from 1 without gap or duplicate; moments never fall, lie in the window and never in the future.
    pub async fn ledger_is_sound(&self, id: Uuid) {
        let wrong: Option<String> = self
            .ask(format!(
                "select case
                   when count(*) <> coalesce(max(visit_number), 0) then format('%s visits, numbered up to %s', count(*), max(visit_number))
                   when min(visit_number) < 1 then 'a number below 1'
                   when count(*) <> count(distinct id) then 'an id twice'
                   when bool_or(visited_at < before) then 'visited_at falls'
                   when bool_or(visited_at > created_at) then 'a visit in the future'
                 end from (select *, lag(visited_at) over (order by visit_number) as before
                             from store_visits where distribution_id = '{id}') v"
            ))
            .await;
        assert_eq!(wrong, None, "the visits of {id}");
    }

    /// Seconds, counted from the row's start, at whose end what is stored (by `visited_at`) is not what the curve says. Only
    /// those that have passed, and not those just after an edit, or just after the window opened that an edit had moved, when
    /// what was due before it is still draining.
    pub async fn seconds_off_the_curve(&self, id: Uuid) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "select format('%s: %s instead of %s', at, counted, due)
               from visit_distribution d
               cross join lateral generate_series(case when d.anchor_at = d.start_time then d.start_time
                   else greatest(d.anchor_at, d.start_time) + interval '2 seconds' end,
                 least(coalesce(d.end_time, 'infinity'), clock_timestamp() - interval '3 seconds'), interval '1 second') at
               cross join lateral (select visit_distribution_due(d.id, at) as due,
                 (select count(*) from store_visits v where v.distribution_id = d.id and v.visited_at <= at) as counted) c
              where d.id = '{id}' and counted <> due order by at"
        )))
        .fetch_all(&self.db)
        .await
        .expect("the row is there")
    }
}
