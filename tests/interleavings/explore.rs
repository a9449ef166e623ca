//! Goes through all interleavings of some scripts, depth first: each schedule begins in the same state, takes one step after
//! the other, and is repeated up to the last point where another actor could have gone on.
//!
//! A statement that is held at a gate is a step taken; that it goes on is the next one. One that waits for a lock goes on when
//! its blocker ends. Invariant: between two steps nothing runs: every statement has ended, or is held, or waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::actor::{Gate, Role, Script, Session, Step, Stored};
use super::oracle::{RowState, Violation, Wrong, check};
use super::scene::Scene;
use crate::harness::PATIENCE;

/// Schedules at the most; an exploration that has more is no exploration.
const SCHEDULES_MAX: usize = 20_000;
/// Steps of a schedule at the most.
const STEPS_MAX: usize = 100;
/// How long a statement may take to end, before the locks are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What an exploration did and found.
#[derive(Default, Debug)]
pub struct Report {
    /// Schedules gone through.
    pub schedules: usize,
    /// Steps taken.
    pub steps: usize,
    /// Steps that had to wait for a lock.
    pub waits: usize,
    /// The first schedule of each kind of violation.
    pub found: BTreeMap<Wrong, String>,
}

/// The choices of a schedule: which of the actors that could go on did, of how many.
#[derive(Default)]
struct Schedule {
    choices: Vec<(usize, usize)>,
    depth: usize,
}

impl Schedule {
    fn choose(&mut self, of: usize) -> usize {
        if self.depth == self.choices.len() {
            self.choices.push((0, of));
        }
        let (choice, among) = &mut self.choices[self.depth];
        *among = of;
        *choice = (*choice).min(of - 1);
        self.depth += 1;
        *choice
    }

    /// Moves on to the next one; false after the last.
    fn next(&mut self) -> bool {
        self.choices.truncate(self.depth);
        self.depth = 0;
        while let Some((choice, of)) = self.choices.pop() {
            if choice + 1 < of {
                self.choices.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

struct Actor {
    script: Script,
    key: i32,
    pid: i32,
    /// Steps begun.
    begun: usize,
    /// None while a statement is under way.
    session: Option<Session>,
    held: Option<Gate>,
    blocked_by: Vec<i32>,
}

impl Actor {
    fn can_go_on(&self) -> bool {
        self.held.is_some() || (self.session.is_some() && self.begun < self.script.steps.len())
    }
}

struct Performed {
    actor: usize,
    session: Session,
    outcome: Result<Vec<Stored>, sqlx::Error>,
}

struct Run<'a> {
    scene: &'a mut Scene,
    actors: Vec<Actor>,
    under_way: JoinSet<Performed>,
    trace: Vec<String>,
    seen: Vec<RowState>,
    report: Report,
}

/// Goes through all schedules, or until a violation of that kind is found.
pub async fn explore(scene: &mut Scene, scripts: &[Script], until: Option<Wrong>) -> Report {
    let mut actors = Vec::new();
    for (script, key) in scripts.iter().zip(1..) {
        let mut session = scene.actor(key, &script.gates).await;
        actors.push(Actor {
            script: script.clone(),
            key,
            pid: session.pid().await,
            begun: 0,
            session: Some(session),
            held: None,
            blocked_by: Vec::new(),
        });
    }
    let mut run = Run {
        scene,
        actors,
        under_way: JoinSet::new(),
        trace: Vec::new(),
        seen: Vec::new(),
        report: Report::default(),
    };
    let mut schedule = Schedule::default();
    loop {
        let wrong = run.follow(&mut schedule).await;
        run.report.schedules += 1;
        for violation in wrong {
            let trace = run.trace.join("; ");
            let told = format!("{violation}\n  after: {trace}");
            run.report.found.entry(violation.kind).or_insert(told);
        }
        let found = until.is_some_and(|kind| run.report.found.contains_key(&kind));
        if found || !schedule.next() {
            break;
        }
        assert!(
            run.report.schedules < SCHEDULES_MAX,
            "fewer than {SCHEDULES_MAX} schedules"
        );
    }
    run.scene.open_all_gates().await;
    run.report
}

impl Run<'_> {
    /// One schedule from its beginning to its end, or to the first thing that is wrong.
    async fn follow(&mut self, schedule: &mut Schedule) -> Vec<Violation> {
        self.scene.reset().await;
        self.trace.clear();
        for actor in &mut self.actors {
            actor.begun = 0;
            actor
                .session
                .as_mut()
                .expect("between two schedules")
                .forget();
        }
        self.seen = self.scene.look().await;
        loop {
            let ready: Vec<usize> = (0..self.actors.len())
                .filter(|actor| self.actors[*actor].can_go_on())
                .collect();
            if ready.is_empty() {
                break;
            }
            assert!(self.trace.len() < STEPS_MAX, "it ends: {:?}", self.trace);
            let chosen = ready[schedule.choose(ready.len())];
            let wrong = self.step(chosen).await;
            if !wrong.is_empty() {
                self.abandon().await;
                return wrong;
            }
        }
        assert!(self.under_way.is_empty(), "all has ended: {:?}", self.trace);
        self.scene.converge().await.into_iter().collect()
    }

    /// One actor goes on; then nothing runs any more, and what is committed is looked at.
    async fn step(&mut self, chosen: usize) -> Vec<Violation> {
        self.report.steps += 1;
        let actor = &mut self.actors[chosen];
        let name = actor.script.name;
        if let Some(gate) = actor.held.take() {
            self.trace.push(format!("{name} goes on from {gate:?}"));
            let key = actor.key;
            self.scene.open_gate(key, gate).await;
        } else {
            let step = actor.script.steps[actor.begun];
            actor.begun += 1;
            self.trace.push(match step {
                Step::Sql(sql) => format!("{name}: {sql}"),
                Step::Read | Step::Store | Step::WriteBack => format!("{name}: {step:?}"),
            });
            let mut session = actor.session.take().expect("no statement is under way");
            self.under_way.spawn(async move {
                let outcome = session.perform(step).await;
                Performed {
                    actor: chosen,
                    session,
                    outcome,
                }
            });
        }
        let (stored, mut wrong) = self.settle().await;
        wrong.extend(self.waits());
        let now = self.scene.look().await;
        let sql_functions = self.actors.iter().any(|actor| actor.script.sql_functions);
        wrong.extend(check(&self.seen, &now, &stored, sql_functions));
        self.seen = now;
        wrong
    }

    /// Waits until every statement has ended, is held, or waits for a lock.
    async fn settle(&mut self) -> (Vec<Stored>, Vec<Violation>) {
        let (mut stored, mut wrong) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(performed) = self.under_way.try_join_next() {
                match self.ended(performed.expect("no panic")) {
                    Ok(of_batch) => stored.extend(of_batch),
                    Err(violation) => wrong.push(violation),
                }
            }
            if self.nothing_runs().await {
                return (stored, wrong);
            }
            assert!(Instant::now() < deadline, "it settles: {:?}", self.trace);
            if let Ok(Some(performed)) = timeout(LOOK_EVERY, self.under_way.join_next()).await {
                match self.ended(performed.expect("no panic")) {
                    Ok(of_batch) => stored.extend(of_batch),
                    Err(violation) => wrong.push(violation),
                }
            }
        }
    }

    fn ended(&mut self, performed: Performed) -> Result<Vec<Stored>, Violation> {
        let actor = &mut self.actors[performed.actor];
        actor.session = Some(performed.session);
        actor.held = None;
        actor.blocked_by.clear();
        performed.outcome.map_err(|error| {
            Violation::new(Wrong::Failed, format!("{}: {error}", actor.script.name))
        })
    }

    /// Whether all that is under way is held or waits, and where.
    async fn nothing_runs(&mut self) -> bool {
        let pids: Vec<i32> = self
            .actors
            .iter()
            .filter(|actor| actor.session.is_none())
            .map(|actor| actor.pid)
            .collect();
        if pids.is_empty() {
            return true;
        }
        // Who waits for somebody else (a vacuum) goes on by itself, and who waits for nobody any more does already.
        let cast: Vec<i32> = self.actors.iter().map(|actor| actor.pid).collect();
        let mut waiting = self.scene.waiting(&pids).await;
        waiting.retain(|(_, gate, by)| {
            gate.is_some() || (!by.is_empty() && by.iter().all(|pid| cast.contains(pid)))
        });
        for actor in &mut self.actors {
            (actor.held, actor.blocked_by) = (None, Vec::new());
            if let Some((_, gate, by)) = waiting.iter().find(|(pid, ..)| *pid == actor.pid) {
                match gate {
                    Some(key) => actor.held = Some(Gate::of(*key)),
                    None => actor.blocked_by.clone_from(by),
                }
            }
        }
        waiting.len() == pids.len()
    }

    /// Whether somebody waits who may not, or two wait for each other.
    fn waits(&mut self) -> Option<Violation> {
        let blocked: Vec<&Actor> = self
            .actors
            .iter()
            .filter(|actor| !actor.blocked_by.is_empty())
            .collect();
        self.report.waits += usize::from(!blocked.is_empty());
        let of_pid = |pid: &i32| self.actors.iter().find(|actor| actor.pid == *pid);
        for waiter in &blocked {
            let mut behind: BTreeSet<i32> = BTreeSet::new();
            let mut next = waiter.blocked_by.clone();
            while let Some(pid) = next.pop() {
                if behind.insert(pid) {
                    next.extend(of_pid(&pid).into_iter().flat_map(|a| &a.blocked_by));
                }
            }
            let names: Vec<&str> = behind
                .iter()
                .filter_map(of_pid)
                .map(|actor| actor.script.name)
                .collect();
            let how = format!("{} waits for {names:?}", waiter.script.name);
            if behind.contains(&waiter.pid) {
                return Some(Violation::new(Wrong::Deadlock, how));
            }
            let between_statements = |pid: &i32| {
                of_pid(pid).is_some_and(|by| by.session.is_some() && by.script.role != Role::Editor)
            };
            let may = match waiter.script.role {
                Role::Pacer => false,
                Role::Caretaker => true,
                Role::Editor => !waiter.blocked_by.iter().any(between_statements),
            };
            if !may {
                return Some(Violation::new(Wrong::Waited, how));
            }
        }
        None
    }

    /// Ends a schedule wherever it is: lets everything go on, and rolls back.
    async fn abandon(&mut self) {
        self.scene.open_all_gates().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            for actor in &mut self.actors {
                if let Some(session) = &mut actor.session {
                    session.run("rollback").await.expect("a rollback");
                }
            }
            if self.under_way.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "it ends: {:?}", self.trace);
            if let Ok(Some(performed)) = timeout(LOOK_EVERY, self.under_way.join_next()).await {
                // What fails now is part of what was found wrong.
                self.ended(performed.expect("no panic")).ok();
            }
        }
        for actor in &self.actors {
            self.scene.close_gates(actor.key, &actor.script.gates).await;
        }
    }
}
