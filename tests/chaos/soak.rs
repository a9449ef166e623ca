//! The soak test: every fault at once, for as long as you like, and every promise checked each minute.
//!
//! `VISIT_PACER_SOAK_MINUTES=30 cargo test --locked --test contract soak -- --nocapture`; without the variable a short form
//! runs. `VISIT_PACER_SOAK_SEED` seeds its randomness; it is printed.
//!
//! Each kind of fault is a task: PostgreSQL, the connections, Realtime, the agents, locks, and edits. A fault holds [`Soak::storm`]
//! for reading while it lasts and repairs what it broke; [`judge`] holds it for writing, so it checks while nothing is broken. Three
//! agents work, each behind a proxy. The last one is never killed, so its memory, files and log can be followed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;
use visit_pacer::demo::realtime_server::{Deafness, EventFault, RealtimeServer, Severance};
use visit_pacer::demo::server::{PostgresServer, StopMode};
use visit_pacer::demo::stack;
use visit_pacer::domain::secret::Secret;

use crate::chaos::DRAINS_WITHIN;
use crate::chaos::agents::Crew;
use crate::chaos::edits::Edited;
use crate::chaos::realtime::DROP_SLOT;
use crate::harness::proxy::{Direction, Line, Proxy};
use crate::harness::{Agent, Place, wait_until};
use crate::oracle::{self, barrier};

/// Agents; all but the last are killed.
const AGENTS: u64 = 3;
/// Rows that are edited.
const EDITED: usize = 20;
/// Editors at once.
const EDITORS: u64 = 3;
/// Warnings of one kind that an agent may log in a minute.
const LINES_A_MINUTE: u32 = 40;
/// Realtime is live again, after the longest back-off.
const READY_WITHIN: Duration = Duration::from_secs(100);
/// From this length on memory must not grow; before, buffers are still filled.
const FLAT_FROM: Duration = Duration::from_mins(5);
/// How much more memory than in the first third of the time an agent may have in the last, and some for the allocator.
const GROWTH_MAX: f64 = 1.2;
const SLACK_KIB: f64 = 8_192.0;
/// Files that an agent may have open: connections, sockets, its log, those of the runtime, and many that are closing.
const FILES_MAX: usize = 100;
/// Limit of a statement that holds locks.
const STATEMENT_LIMIT: Duration = Duration::from_secs(20);

/// How long all of it lasts, and how long faults occur between two checks.
fn lengths() -> (Duration, Duration) {
    match setting("VISIT_PACER_SOAK_MINUTES") {
        Some(minutes) => (Duration::from_mins(minutes), Duration::from_secs(55)),
        None => (Duration::from_secs(20), Duration::from_secs(10)),
    }
}

fn setting(wanted: &str) -> Option<u64> {
    let (_, value) = std::env::vars().find(|(name, _)| name == wanted)?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{wanted} is a whole number, not {value:?}")),
    )
}

/// What the tasks share.
struct Soak {
    storm: RwLock<()>,
    seed: u64,
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl Soak {
    fn dice(&self, whose: u64) -> Pcg32 {
        Pcg32::seed_from_u64(self.seed ^ (whose << 32))
    }

    fn count(&self, fault: &'static str) {
        let mut faults = self.faults.lock().expect("nobody panics");
        *faults.entry(fault).or_default() += 1;
    }

    fn faults(&self) -> String {
        let faults = self.faults.lock().expect("nobody panics");
        let said: Vec<String> = faults
            .iter()
            .map(|(fault, times)| format!("{fault} {times}"))
            .collect();
        said.join(", ")
    }
}

fn millis(dice: &mut Pcg32, from: u64, to: u64) -> Duration {
    Duration::from_millis(dice.random_range(from..to))
}

/// Kills, freezes and terminates agents.
async fn strike(soak: &Soak, crew: &RwLock<Crew<'_>>) {
    let mut dice = soak.dice(1);
    loop {
        sleep(millis(&mut dice, 2_000, 8_000)).await;
        let _storm = soak.storm.read().await;
        soak.count(crew.write().await.strike_but_last(&mut dice).await);
    }
}

/// Breaks the connections of one agent.
async fn break_connections(soak: &Soak, proxy: &Proxy, whose: u64) {
    let mut dice = soak.dice(10 + whose);
    loop {
        sleep(millis(&mut dice, 1_000, 9_000)).await;
        let _storm = soak.storm.read().await;
        let spell = millis(&mut dice, 500, 5_000);
        let line = match dice.random_range(0..8) {
            0 => {
                soak.count("connections cut");
                proxy.cut();
                continue;
            }
            1 => {
                soak.count("connections cut in mid-statement");
                proxy.cut_within(Some(6_000));
                sleep(spell).await;
                proxy.cut_within(None);
                continue;
            }
            2 => {
                soak.count("answers lost");
                proxy.lose_answers(3);
                continue;
            }
            3 => {
                soak.count("connects refused");
                proxy.admit(false);
                proxy.cut();
                sleep(spell).await;
                proxy.admit(true);
                continue;
            }
            4 => Line::HalfOpen(Direction::ToClient),
            5 => Line::HalfOpen(Direction::ToServer),
            6 => Line::Slow(6_000),
            _ => Line::Late(Duration::from_millis(200)),
        };
        soak.count("line slow, late or half open");
        proxy.line(line);
        sleep(spell).await;
        proxy.line(Line::Passes);
    }
}

/// Crashes and restarts PostgreSQL.
async fn crash(soak: &Soak, server: &mut PostgresServer, every: (u64, u64)) {
    let mut dice = soak.dice(2);
    loop {
        sleep(millis(&mut dice, every.0, every.1)).await;
        let _storm = soak.storm.read().await;
        soak.count("Postgres crashed");
        let mode = [StopMode::Immediate, StopMode::Kill][dice.random_range(0..2)];
        server.stop(mode).await.expect("it stops");
        sleep(millis(&mut dice, 0, 1_500)).await;
        server.start_again().await.expect("it starts");
    }
}

/// Kills Realtime, makes it deaf, loses and duplicates events.
async fn break_realtime(soak: &Soak, realtime: &mut RealtimeServer, url: &str) {
    let mut dice = soak.dice(3);
    loop {
        sleep(millis(&mut dice, 2_000, 9_000)).await;
        let _storm = soak.storm.read().await;
        let spell = millis(&mut dice, 300, 4_000);
        let fault = match dice.random_range(0..7) {
            0 => {
                soak.count("Realtime killed");
                realtime.kill().await;
                sleep(spell).await;
                realtime.start_again().await.expect("its port is free");
                continue;
            }
            1 => {
                soak.count("Realtime's clients dropped");
                realtime.faults().drop_connections(Severance::Abrupt);
                continue;
            }
            2 => {
                soak.count("Realtime deaf");
                realtime.faults().set_deafness(Deafness::UntilRejoin);
                continue;
            }
            3 => {
                soak.count("Realtime's slot dropped");
                run_session(url, DROP_SLOT, Duration::ZERO, "").await;
                continue;
            }
            4 => EventFault::Drop,
            5 => EventFault::Duplicate,
            _ => EventFault::Reorder,
        };
        soak.count("events lost, duplicated or out of order");
        realtime.faults().set_events(fault);
        sleep(spell).await;
        realtime.faults().set_events(EventFault::None);
    }
}

/// Connects, runs one statement, waits, and runs another. The database may be unavailable.
async fn run_session(url: &str, first: &str, stays: Duration, then: &str) {
    let session = async {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::raw_sql(AssertSqlSafe(first.to_owned()))
            .execute(&mut connection)
            .await?;
        sleep(stays).await;
        sqlx::raw_sql(AssertSqlSafe(then.to_owned()))
            .execute(&mut connection)
            .await?;
        connection.close().await
    };
    // It may fail; nothing depends on it.
    let _succeeded = matches!(timeout(STATEMENT_LIMIT, session).await, Ok(Ok(())));
}

/// Holds locks and calls the SQL functions.
async fn hold_locks(soak: &Soak, url: &str, edited: &Edited) {
    let mut dice = soak.dice(4);
    loop {
        sleep(millis(&mut dice, 300, 2_500)).await;
        let _storm = soak.storm.read().await;
        let stays = millis(&mut dice, 100, 2_500);
        let (what, sql) = match dice.random_range(0..7) {
            0 => (
                "row locked",
                format!(
                    "begin; select from visit_distribution where id = '{}' for update",
                    edited.any(&mut dice)
                ),
            ),
            1 => (
                "table locked",
                "begin; lock table visit_distribution in share row exclusive mode".to_owned(),
            ),
            2 => (
                "table locked",
                "begin; lock table store_visits in share row exclusive mode".to_owned(),
            ),
            3 => (
                "distribute_visits()",
                "select from distribute_visits()".to_owned(),
            ),
            4 => (
                "sync_distribution_counts()",
                "select from sync_distribution_counts()".to_owned(),
            ),
            5 => (
                "distribute_visits_for_partner()",
                format!(
                    "select from distribute_visits_for_partner('{}', 20)",
                    edited.partner()
                ),
            ),
            _ => (
                "status read",
                "select count(*) from visit_distribution_status".to_owned(),
            ),
        };
        soak.count(what);
        let (stays, then) = if what.ends_with("locked") {
            (stays, "commit")
        } else {
            (Duration::ZERO, "")
        };
        run_session(url, &sql, stays, then).await;
    }
}

/// Edits some ten times a second, and reconnects when the connection is lost.
async fn edit(soak: &Soak, url: &str, edited: &Edited, whose: u64) {
    let mut dice = soak.dice(20 + whose);
    loop {
        let Ok(Ok(mut connection)) = timeout(STATEMENT_LIMIT, PgConnection::connect(url)).await
        else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        loop {
            sleep(millis(&mut dice, 20, 180)).await;
            let _storm = soak.storm.read().await;
            let edit = edited.edit_once(&mut connection, &mut dice);
            if !matches!(timeout(STATEMENT_LIMIT, edit).await, Ok(Ok(()))) {
                break;
            }
        }
    }
}

/// The memory of a process in KiB, and its open files.
fn held_by(agent: &Agent) -> (u32, usize) {
    let folder = format!("/proc/{}", agent.pid());
    let status = std::fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let files = std::fs::read_dir(format!("{folder}/fd")).map_or(0, Iterator::count);
    (resident, files)
}

/// Warnings and errors of a log by message: how many in total, and in one minute at most.
fn warnings(log: &str) -> BTreeMap<String, (u32, u32)> {
    let mut by_minute = BTreeMap::<(String, String), u32>::new();
    for line in log.lines() {
        let mut words = line.split_whitespace();
        let (Some(timestamp), Some("WARN" | "ERROR")) = (words.next(), words.next()) else {
            continue;
        };
        let said: Vec<String> = words
            .take_while(|word| !word.contains('='))
            .map(|word| word.replace(|letter: char| letter.is_ascii_digit(), "#"))
            .collect();
        let minute = timestamp.chars().take("2026-01-01T00:00".len()).collect();
        *by_minute.entry((said.join(" "), minute)).or_default() += 1;
    }
    let mut warnings = BTreeMap::<String, (u32, u32)>::new();
    for ((said, _), times) in by_minute {
        let (all, most) = warnings.entry(said).or_default();
        *all += times;
        *most = times.max(*most);
    }
    warnings
}

/// What is judged.
struct Judged<'a> {
    place: &'a Place,
    crew: &'a RwLock<Crew<'a>>,
    edited: &'a Edited,
    neighbours: [Uuid; 2],
    /// Memory of the agent that is never killed, in KiB, of each second.
    memory: Vec<u32>,
}

impl Judged<'_> {
    /// Lets the faults occur for a while, and records the memory of the agent that is never killed.
    async fn watch_for(&mut self, storm: Duration, pid: nix::unistd::Pid) {
        let until = Instant::now() + storm;
        while Instant::now() < until {
            sleep(Duration::from_secs(1)).await;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            self.memory.extend(
                resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok()),
            );
        }
    }

    /// Checks all promises, of the visits stored since a moment. Returns a line of figures.
    async fn check(&self, soak: &Soak, since: &str) -> String {
        let place = self.place;
        self.edited.calm_down(place).await;
        oracle::all_are_on_their_curves(place, DRAINS_WITHIN).await;
        barrier::promises_hold(place, since).await;
        let [gap, visits] = [
            oracle::longest_gap(place, &oracle::visits_of(self.neighbours[0]), since).await,
            place.ask("select count(*)::float8 from store_visits").await,
        ];
        let held: Vec<String> = self
            .crew
            .read()
            .await
            .agents()
            .map(|agent| {
                let (resident, files) = held_by(agent);
                assert!(files <= FILES_MAX, "{files} files are open");
                let lines: u32 = warnings(&agent.log()).values().map(|(all, _)| all).sum();
                format!("{} MiB {files} files {lines} warnings", resident / 1024)
            })
            .collect();
        format!(
            "{visits:.0} visits, {} edits ({} failed), longest gap {gap:.1} s; agents: {}; {}",
            self.edited.made(),
            self.edited.failed(),
            held.join(" | "),
            soak.faults(),
        )
    }

    /// Checks and prints the figures of the agent that was never killed.
    async fn conclude(&self, length: Duration) {
        let crew = self.crew.read().await;
        let steady = crew.agents().last().expect("the last one");
        println!("warnings of the agent that was never killed: in total, in a minute at most");
        for (said, (all, most)) in warnings(&steady.log()) {
            println!("{all:6} {most:4}  {said}");
            assert!(
                most <= LINES_A_MINUTE,
                "{most} warnings in a minute: {said}"
            );
        }
        let third = self.memory.len() / 3;
        let most = |part: &[u32]| f64::from(part.iter().copied().max().unwrap_or(0));
        let (first, last) = (
            most(&self.memory[..third]),
            most(&self.memory[self.memory.len() - third..]),
        );
        println!(
            "its memory: at most {:.1} MiB in the first third, {:.1} in the last",
            first / 1024.0,
            last / 1024.0
        );
        if length >= FLAT_FROM {
            assert!(
                last <= first * GROWTH_MAX + SLACK_KIB,
                "memory grows: {first} to {last} KiB"
            );
        }
    }
}

/// Checks after each storm. In the end, ends all rows and expects every visit.
async fn judge(soak: &Soak, mut judged: Judged<'_>) {
    let place = judged.place;
    let (length, storm) = lengths();
    let pid = judged
        .crew
        .read()
        .await
        .agents()
        .last()
        .expect("the last one")
        .pid();
    let began = Instant::now();
    let mut since = "-infinity".to_owned();
    while began.elapsed() < length {
        judged.watch_for(storm, pid).await;
        let _calm = soak.storm.write().await;
        // What is in progress at this check has an earlier created_at, and is checked by the next.
        let next: String = place
            .ask("select (clock_timestamp() - interval '1 minute')::text")
            .await;
        let figures = judged.check(soak, &since).await;
        println!("{:4} s: {figures}", began.elapsed().as_secs());
        since = next;
    }
    let _calm = soak.storm.write().await;
    // Faults and edits since the last check must not affect what follows.
    judged.check(soak, &since).await;
    for row in judged.neighbours {
        wait_until("a neighbour is on its curve", DRAINS_WITHIN, async || {
            place.seconds_off_the_curve(row).await.is_empty()
        })
        .await;
    }
    oracle::all_stored_exactly_once(place, oracle::ALL, DRAINS_WITHIN).await;
    barrier::promises_hold(place, &since).await;
    for agent in judged.crew.read().await.agents() {
        wait_until("the agent is ready again", READY_WITHIN, async || {
            agent.get("/readyz").await.0 == 200
        })
        .await;
    }
    judged.conclude(length).await;
}

/// A Realtime server that may be killed, beside that of the place, and a key for it.
async fn realtime(place: &Place) -> (RealtimeServer, Secret) {
    let secret = Secret::new(format!("{:064x}", rand::random::<u128>()));
    let key = stack::service_key(&secret);
    let server = stack::realtime(&place.url, 0, secret).await;
    (server.expect("a Realtime server"), key)
}

#[tokio::test]
async fn soak_with_every_fault_at_once_every_due_visit_is_stored_once() {
    let mut place = Place::apart().await;
    let mut server = place.server.take().expect("a server of its own");
    barrier::record_edits(&place).await;
    let seed = setting("VISIT_PACER_SOAK_SEED").unwrap_or_else(rand::random);
    println!("VISIT_PACER_SOAK_SEED={seed}");
    let soak = Soak {
        storm: RwLock::new(()),
        seed,
        faults: Mutex::default(),
    };
    let neighbours = [
        place.insert(100_000_000, "20 a second", "null").await,
        place.insert(100_000_000, "150 a minute", "null").await,
    ];
    let edited = Edited::new(&place, EDITED).await;

    let (mut realtime, key) = realtime(&place).await;
    let (mut proxies, mut environments) = (Vec::new(), Vec::new());
    for agent in 0_u64..AGENTS {
        let proxy = Proxy::to(place.port(), seed.wrapping_add(agent)).await;
        environments.push(place.environment_with(&[
            ("DATABASE_URL", &proxy.url(&place.url)),
            ("SUPABASE_URL", &realtime.supabase_url()),
            ("SUPABASE_SERVICE_ROLE_KEY", key.expose()),
        ]));
        proxies.push(proxy);
    }
    let crew = RwLock::new(Crew::start(&place.folder, environments).await);
    wait_until("visits are stored", DRAINS_WITHIN, async || {
        place.stored(neighbours[0]).await > 40
    })
    .await;

    let (length, _) = lengths();
    let crashes_every = if length > Duration::from_mins(1) {
        (15_000, 45_000)
    } else {
        (3_000, 7_000)
    };
    let url = place.url.as_str();
    let storm = async {
        tokio::join!(
            strike(&soak, &crew),
            futures_util::future::join_all(
                (0_u64..)
                    .zip(&proxies)
                    .map(|(whose, proxy)| break_connections(&soak, proxy, whose))
            ),
            crash(&soak, &mut server, crashes_every),
            break_realtime(&soak, &mut realtime, url),
            hold_locks(&soak, url, &edited),
            futures_util::future::join_all(
                (0..EDITORS).map(|whose| edit(&soak, url, &edited, whose))
            ),
        )
    };
    let judged = Judged {
        place: &place,
        crew: &crew,
        edited: &edited,
        neighbours,
        memory: Vec::new(),
    };
    tokio::select! {
        () = judge(&soak, judged) => {}
        _ = storm => unreachable!("the faults never end"),
    }
}
