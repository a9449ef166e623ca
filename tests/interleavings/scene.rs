//! The database of an exploration: two rows in which three visits are due, gates in the middle of statements, and mutants of
//! the functions.
//!
//! A gate is an advisory lock that the scene holds and a statement waits for; it stands in wrappers of the small functions
//! that the store calls, and in triggers. Nothing of what is tested is changed, but for a mutant, and for
//! `visit_pacer_lock_row()`, which gives up later, so that a slow machine goes through the same schedules.

use sqlx::AssertSqlSafe;

use super::actor::{Gate, Session, Step};
use super::oracle::{self, RowState, Violation, Wrong};
use crate::harness::server;

/// Visits of a row in one batch, so that several batches fit below the curve.
const BATCH_VISITS: i64 = 1;
/// The same once all is quiet.
const LAST_BATCH_VISITS: i64 = 100;
/// Reads and stores after which an agent that is alone has stored what is due: one for each filling of the bucket, and one
/// that finds nothing.
const LAST_BATCHES: usize = 4;

const GATES: &str = r"
  create function one() returns uuid immutable language sql as $$ select '00000000-0000-4000-8000-000000000001'::uuid $$;
  create function two() returns uuid immutable language sql as $$ select '00000000-0000-4000-8000-000000000002'::uuid $$;
  create function partner() returns uuid immutable language sql as $$ select '00000000-0000-4000-8000-00000000000a'::uuid $$;
  create function another_partner() returns uuid immutable language sql as $$ select '00000000-0000-4000-8000-00000000000b'::uuid $$;

  create function gate(key integer) returns void language plpgsql as $$
  begin
    if key = any (string_to_array(current_setting('test.gates', true), ',')::integer[]) then
      perform pg_advisory_lock(current_setting('test.actor')::integer, key);
      perform pg_advisory_unlock(current_setting('test.actor')::integer, key);
    end if;
  end $$;

  alter function visit_pacer_may_store() rename to visit_pacer_may_store_itself;
  create function visit_pacer_may_store() returns boolean language plpgsql as $$
  begin perform public.gate(0); return public.visit_pacer_may_store_itself(); end $$;

  alter function visit_pacer_lock_partners(text[]) rename to visit_pacer_lock_partners_itself;
  create function visit_pacer_lock_partners(partners text[]) returns setof text language plpgsql as $$
  begin perform public.gate(1); return query select * from public.visit_pacer_lock_partners_itself(partners); end $$;

  create function gate() returns trigger language plpgsql as $$
  begin perform public.gate(tg_argv[0]::integer); return new; end $$;
  create trigger gate before update on visit_distribution_progress for each row execute function gate('2');
  create trigger gate_before before insert on store_visits for each statement execute function gate('3');
  create trigger gate_after after insert on store_visits for each statement execute function gate('4');

  alter function visit_pacer_lock_row(uuid) rename to visit_pacer_lock_row_itself;
  alter function visit_pacer_lock_row_itself(uuid) set lock_timeout = '60s';
  create function visit_pacer_lock_row(distribution uuid) returns boolean language plpgsql as $$
  begin perform public.gate(5); return public.visit_pacer_lock_row_itself(distribution); end $$;

  insert into partners (id) values (partner()), (another_partner());
  create or replace function visit_pacer_agent_alive() returns boolean language sql stable set search_path = '' as 'select true'";

/// The curve of these rows is at 3.0 visits: it takes three minutes to the next.
const RESET: &str = "
  delete from store_visits;
  delete from visit_distribution;
  delete from visit_distribution_progress;
  update visit_pacer_control set paused = false where paused;
  insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
  select id, partner(), 6, 'hour', 10, now() - interval '18 minutes', now() + interval '1 hour' from unnest(array[one(), two()]) id";

/// A function with a guard of it taken out.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The function.
    pub function: &'static str,
    /// Its text, and what stands there instead.
    pub edits: &'static [(&'static str, &'static str)],
    /// What else is done to the database.
    pub beside: &'static str,
}

/// A database, and the connection that watches it and holds its gates.
pub struct Scene {
    url: String,
    /// Watches, and is the agent that is left in the end.
    pub watch: Session,
}

impl Scene {
    /// A new one, with the functions as they are or with a mutant.
    pub async fn new(mutant: Option<&Mutant>) -> Self {
        let url = server::shared().migrated().await;
        let mut watch = Session::open(&url, LAST_BATCH_VISITS).await;
        if let Some(mutant) = mutant {
            let definition: String = sqlx::query_scalar(
                "select pg_get_functiondef(oid) from pg_proc where proname = $1 and pronamespace = 'public'::regnamespace",
            )
            .bind(mutant.function)
            .fetch_one(watch.connection())
            .await
            .expect("a function of that name");
            let mut changed = definition;
            for (text, instead) in mutant.edits {
                assert!(
                    changed.contains(text),
                    "{} has {text}: {changed}",
                    mutant.function
                );
                changed = changed.replace(text, instead);
            }
            watch.run(&changed).await.expect("a mutant");
            watch.run(mutant.beside).await.expect("a mutant");
        }
        watch.run(GATES).await.expect("gates");
        Self { url, watch }
    }

    /// A connection for that actor, which is held at these gates.
    pub async fn actor(&mut self, actor: i32, gates: &[Gate]) -> Session {
        let mut session = Session::open(&self.url, BATCH_VISITS).await;
        let keys: Vec<String> = gates.iter().map(|gate| gate.key().to_string()).collect();
        session
            .run(&format!(
                "set test.actor = '{actor}'; set test.gates = '{}'",
                keys.join(",")
            ))
            .await
            .expect("settings of the test's own");
        self.close_gates(actor, gates).await;
        session
    }

    /// Takes the locks that the actor's statements wait for.
    pub async fn close_gates(&mut self, actor: i32, gates: &[Gate]) {
        for gate in gates {
            self.ask(format!("select pg_advisory_lock({actor}, {})", gate.key()))
                .await;
        }
    }

    /// Lets the statement go on that waits there; the next one waits again.
    pub async fn open_gate(&mut self, actor: i32, gate: Gate) {
        let key = gate.key();
        self.ask(format!(
            "select pg_advisory_unlock({actor}, {key}), pg_advisory_lock({actor}, {key})"
        ))
        .await;
    }

    /// Lets everything go on, for good.
    pub async fn open_all_gates(&mut self) {
        self.ask("select pg_advisory_unlock_all()".to_owned()).await;
    }

    /// As it was in the beginning.
    pub async fn reset(&mut self) {
        self.watch
            .run(RESET)
            .await
            .expect("the state to begin with");
    }

    /// What is committed now.
    pub async fn look(&mut self) -> Vec<RowState> {
        oracle::look(self.watch.connection()).await
    }

    /// Those of these server processes that wait for a lock: the gate, where it is one, and for whom.
    pub async fn waiting(&mut self, pids: &[i32]) -> Vec<(i32, Option<i32>, Vec<i32>)> {
        sqlx::query_as(
            "select pid, case when locktype = 'advisory' then objid::integer end, pg_blocking_pids(pid)
               from pg_locks where not granted and pid = any ($1)",
        )
        .bind(pids)
        .fetch_all(self.watch.connection())
        .await
        .expect("a look at the locks")
    }

    /// Once all is quiet: an agent that is alone, while the buckets fill, stores what is due, and nothing where it may not.
    pub async fn converge(&mut self) -> Option<Violation> {
        let before = self.look().await;
        for _ in 0..LAST_BATCHES {
            self.watch
                .run("update visit_distribution_progress set bucket_at = bucket_at - interval '1 day'")
                .await
                .expect("time passes for the buckets");
            for step in [Step::Read, Step::Store] {
                if let Err(error) = self.watch.perform(step).await {
                    return Some(Violation::new(Wrong::Failed, format!("{error}")));
                }
            }
        }
        let after = self.look().await;
        before.iter().zip(&after).find_map(|(was, is)| {
            let expected = is.due.filter(|_| is.open).unwrap_or(was.distributed);
            let expected = expected.max(was.distributed);
            (is.distributed != expected).then(|| {
                Violation::new(
                    Wrong::Stuck,
                    format!("{expected} in the end: {was:?}, {is:?}"),
                )
            })
        })
    }

    async fn ask(&mut self, sql: String) {
        sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .execute(self.watch.connection())
            .await
            .expect("the database answers");
    }
}
