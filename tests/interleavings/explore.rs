//! Runs all interleavings of some scripts, depth first: each begins in the same state, takes one step after the other, and is
//! repeated up to the last point where another actor could have continued.
//!
//! Running a statement up to a gate is one step, continuing it is the next. One that waits for a lock continues when its blocker
//! ends. Invariant: between two steps nothing runs: every statement has ended, is suspended at a gate, or waits for a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::actor::{Gate, Role, Script, Session, Step};
use super::scene::Scene;
use crate::harness::PATIENCE;
use crate::oracle::step::{RowState, StoredRow, Violation, Wrong, check};

/// An exploration with more is a mistake.
const INTERLEAVINGS_MAX: usize = 20_000;
/// Steps of an interleaving at most.
const STEPS_MAX: usize = 100;
/// How often the locks are read while a statement runs.
const CHECK_EVERY: Duration = Duration::from_millis(1);

/// What an exploration did and found.
#[derive(Default, Debug)]
pub struct Report {
    /// Interleavings.
    pub interleavings: usize,
    /// Steps taken.
    pub steps: usize,
    /// Steps with a session waiting for a lock.
    pub waits: usize,
    /// The first interleaving of each kind of violation.
    pub found: BTreeMap<Wrong, String>,
}

/// The choices of an interleaving: which of the actors that could continue did, of how many.
#[derive(Default)]
struct Choices {
    choices: Vec<(usize, usize)>,
    depth: usize,
}

impl Choices {
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
    /// None while a statement runs.
    session: Option<Session>,
    suspended: Option<Gate>,
    blocked_by: Vec<i32>,
}

impl Actor {
    fn can_continue(&self) -> bool {
        self.suspended.is_some() || (self.session.is_some() && self.begun < self.script.steps.len())
    }
}

struct Performed {
    actor: usize,
    session: Session,
    outcome: Result<Vec<StoredRow>, sqlx::Error>,
}

struct Exploration<'a> {
    scene: &'a mut Scene,
    actors: Vec<Actor>,
    running: JoinSet<Performed>,
    trace: Vec<String>,
    seen: Vec<RowState>,
    report: Report,
}

/// Runs all interleavings, or until a violation of that kind is found.
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
            suspended: None,
            blocked_by: Vec::new(),
        });
    }
    let mut run = Exploration {
        scene,
        actors,
        running: JoinSet::new(),
        trace: Vec::new(),
        seen: Vec::new(),
        report: Report::default(),
    };
    let mut choices = Choices::default();
    loop {
        let wrong = run.follow(&mut choices).await;
        run.report.interleavings += 1;
        for violation in wrong {
            let trace = run.trace.join("; ");
            let text = format!("{violation}\n  after: {trace}");
            run.report.found.entry(violation.kind).or_insert(text);
        }
        let found = until.is_some_and(|kind| run.report.found.contains_key(&kind));
        if found || !choices.next() {
            break;
        }
        assert!(
            run.report.interleavings < INTERLEAVINGS_MAX,
            "fewer than {INTERLEAVINGS_MAX} interleavings"
        );
    }
    run.scene.open_all_gates().await;
    run.report
}

impl Exploration<'_> {
    /// One interleaving, to its end or to the first violation.
    async fn follow(&mut self, choices: &mut Choices) -> Vec<Violation> {
        self.scene.reset().await;
        self.trace.clear();
        for actor in &mut self.actors {
            actor.begun = 0;
            actor.session.as_mut().expect("no statement runs").forget();
        }
        self.seen = self.scene.states().await;
        loop {
            let ready: Vec<usize> = (0..self.actors.len())
                .filter(|actor| self.actors[*actor].can_continue())
                .collect();
            if ready.is_empty() {
                break;
            }
            assert!(
                self.trace.len() < STEPS_MAX,
                "too many steps: {:?}",
                self.trace
            );
            let chosen = ready[choices.choose(ready.len())];
            let wrong = self.step(chosen).await;
            if !wrong.is_empty() {
                self.abandon().await;
                return wrong;
            }
        }
        assert!(
            self.running.is_empty(),
            "a statement still runs: {:?}",
            self.trace
        );
        self.scene.converge().await.into_iter().collect()
    }

    /// One actor continues until nothing runs any more; then the committed state is checked.
    async fn step(&mut self, chosen: usize) -> Vec<Violation> {
        self.report.steps += 1;
        let actor = &mut self.actors[chosen];
        let name = actor.script.name;
        if let Some(gate) = actor.suspended.take() {
            self.trace.push(format!("{name} continues from {gate:?}"));
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
            self.running.spawn(async move {
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
        let now = self.scene.states().await;
        let manual = self.actors.iter().any(|actor| actor.script.manual);
        wrong.extend(check(&self.seen, &now, &stored, manual));
        self.seen = now;
        wrong
    }

    /// Waits until every statement has ended, is suspended, or waits for a lock.
    async fn settle(&mut self) -> (Vec<StoredRow>, Vec<Violation>) {
        let (mut stored, mut wrong) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(performed) = self.running.try_join_next() {
                match self.ended(performed.expect("no panic")) {
                    Ok(of_batch) => stored.extend(of_batch),
                    Err(violation) => wrong.push(violation),
                }
            }
            if self.nothing_runs().await {
                return (stored, wrong);
            }
            assert!(
                Instant::now() < deadline,
                "statements still run: {:?}",
                self.trace
            );
            if let Ok(Some(performed)) = timeout(CHECK_EVERY, self.running.join_next()).await {
                match self.ended(performed.expect("no panic")) {
                    Ok(of_batch) => stored.extend(of_batch),
                    Err(violation) => wrong.push(violation),
                }
            }
        }
    }

    fn ended(&mut self, performed: Performed) -> Result<Vec<StoredRow>, Violation> {
        let actor = &mut self.actors[performed.actor];
        actor.session = Some(performed.session);
        actor.suspended = None;
        actor.blocked_by.clear();
        performed.outcome.map_err(|error| {
            Violation::new(Wrong::Failed, format!("{}: {error}", actor.script.name))
        })
    }

    /// Whether every statement is suspended or waits, and where.
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
        // Waiting for another process (a vacuum) ends by itself, and waiting for nobody has ended already.
        let cast: Vec<i32> = self.actors.iter().map(|actor| actor.pid).collect();
        let mut waiting = self.scene.waiting(&pids).await;
        waiting.retain(|(_, gate, by)| {
            gate.is_some() || (!by.is_empty() && by.iter().all(|pid| cast.contains(pid)))
        });
        for actor in &mut self.actors {
            (actor.suspended, actor.blocked_by) = (None, Vec::new());
            if let Some((_, gate, by)) = waiting.iter().find(|(pid, ..)| *pid == actor.pid) {
                match gate {
                    Some(key) => actor.suspended = Some(Gate::of(*key)),
                    None => actor.blocked_by.clone_from(by),
                }
            }
        }
        waiting.len() == pids.len()
    }

    /// Whether a session waits that must not, or sessions wait for each other.
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
                Role::Maintenance => true,
                Role::Editor => !waiter.blocked_by.iter().any(between_statements),
            };
            if !may {
                return Some(Violation::new(Wrong::Waited, how));
            }
        }
        None
    }

    /// Ends an interleaving: lets everything continue, and rolls back.
    async fn abandon(&mut self) {
        self.scene.open_all_gates().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            for actor in &mut self.actors {
                if let Some(session) = &mut actor.session {
                    session.run("rollback").await.expect("a rollback");
                }
            }
            if self.running.is_empty() {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "too many steps: {:?}",
                self.trace
            );
            if let Ok(Some(performed)) = timeout(CHECK_EVERY, self.running.join_next()).await {
                // A failure now is a consequence of the violation.
                self.ended(performed.expect("no panic")).ok();
            }
        }
        for actor in &self.actors {
            self.scene.close_gates(actor.key, &actor.script.gates).await;
        }
    }
}
