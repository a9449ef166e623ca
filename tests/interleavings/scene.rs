//! The database of an exploration: two distributions with three visits due, gates in the middle of statements, and mutants of the
//! functions.
//!
//! A gate is an advisory lock that the scene holds and a statement waits for. Gates are in wrappers of the small functions that the
//! store calls, and in triggers. Nothing else is changed, except for `visit_pacer_lock_row()`, which waits longer, so that a slow
//! machine runs the same interleavings.

use sqlx::AssertSqlSafe;

use super::actor::{Gate, Session, Step};
use crate::harness::server;
use crate::oracle::step::{self, RowState, Violation, Wrong};

/// Visits of a distribution in one batch, so that several batches fit below the curve.
const BATCH_VISITS: i64 = 1;
/// The same in the end.
const LAST_BATCH_VISITS: i64 = 100;
/// Reads and stores of an agent alone until everything due is stored: one for each full bucket, and one that finds nothing.
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

/// The curve of these distributions is at 3.0 visits; the next is due in three minutes.
const RESET: &str = "
  delete from store_visits;
  delete from visit_distribution;
  delete from visit_distribution_progress;
  update visit_pacer_control set paused = false where paused;
  insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
  select id, partner(), 6, 'hour', 10, now() - interval '18 minutes', now() + interval '1 hour' from unnest(array[one(), two()]) id";

/// A function with one of its guards removed.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The function.
    pub function: &'static str,
    /// Parts of its text, and their replacements.
    pub edits: &'static [(&'static str, &'static str)],
    /// Further SQL.
    pub beside: &'static str,
}

/// A database, and the connection that reads it and holds the gates.
pub struct Scene {
    url: String,
    /// Reads the state, and is the agent in the end.
    pub watch: Session,
}

impl Scene {
    /// A new one, with a mutant or without.
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

    /// A connection of an actor, which is suspended at these gates.
    pub async fn actor(&mut self, actor: i32, gates: &[Gate]) -> Session {
        let mut session = Session::open(&self.url, BATCH_VISITS).await;
        let keys: Vec<String> = gates.iter().map(|gate| gate.key().to_string()).collect();
        session
            .run(&format!(
                "set test.actor = '{actor}'; set test.gates = '{}'",
                keys.join(",")
            ))
            .await
            .expect("settings");
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

    /// Continues the statement that is suspended there. The next one is suspended again.
    pub async fn open_gate(&mut self, actor: i32, gate: Gate) {
        let key = gate.key();
        self.ask(format!(
            "select pg_advisory_unlock({actor}, {key}), pg_advisory_lock({actor}, {key})"
        ))
        .await;
    }

    /// Continues every statement, from now on.
    pub async fn open_all_gates(&mut self) {
        self.ask("select pg_advisory_unlock_all()".to_owned()).await;
    }

    /// Restores the initial state.
    pub async fn reset(&mut self) {
        self.watch.run(RESET).await.expect("the initial state");
    }

    /// What is committed now.
    pub async fn states(&mut self) -> Vec<RowState> {
        step::states(self.watch.connection()).await
    }

    /// Which of these server processes wait for a lock: its gate, if it is one, and its blockers.
    pub async fn waiting(&mut self, pids: &[i32]) -> Vec<(i32, Option<i32>, Vec<i32>)> {
        sqlx::query_as(
            "select pid, case when locktype = 'advisory' then objid::integer end, pg_blocking_pids(pid)
               from pg_locks where not granted and pid = any ($1)",
        )
        .bind(pids)
        .fetch_all(self.watch.connection())
        .await
        .expect("the locks")
    }

    /// In the end, while the buckets fill, an agent alone stores what is due and allowed, and nothing else.
    pub async fn converge(&mut self) -> Option<Violation> {
        let before = self.states().await;
        for _ in 0..LAST_BATCHES {
            self.watch
                .run("update visit_distribution_progress set bucket_at = bucket_at - interval '1 day'")
                .await
                .expect("the buckets fill");
            for step in [Step::Read, Step::Store] {
                if let Err(error) = self.watch.perform(step).await {
                    return Some(Violation::new(Wrong::Failed, format!("{error}")));
                }
            }
        }
        let after = self.states().await;
        before.iter().zip(&after).find_map(|(was, is)| {
            let expected = is.due.filter(|_| is.open).unwrap_or(was.distributed);
            let expected = expected.max(was.distributed);
            (is.distributed != expected).then(|| {
                Violation::new(
                    Wrong::Stuck,
                    format!("expected {expected} in the end: {was:?}, {is:?}"),
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
