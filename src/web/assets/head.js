// The summary on top, the banners, and the view of the agent's health.
import { state, edits } from "./api.js";
import * as f from "./format.js";

const byId = (id) => document.getElementById(id);
let asked = false;
let askedTimer = null;
// What the last click here came to; shown until the next one.
let problem = "";

export function wireHead() {
  // What is open below the banner begins where it ends.
  const lost = byId("lost");
  new ResizeObserver(() => document.documentElement.style.setProperty("--lost", `${lost.getBoundingClientRect().height}px`)).observe(lost);
  byId("pause-all").addEventListener("click", async (event) => {
    const button = event.currentTarget;
    const paused = state.head?.paused;
    // Stopping everything takes a second click within five seconds.
    problem = "";
    clearTimeout(askedTimer);
    if (!paused && !asked) {
      asked = true;
      button.textContent = "Pause all? What falls due is stored after resuming. Click again";
      askedTimer = setTimeout(() => { asked = false; drawHead(); }, 5000);
      return;
    }
    asked = false;
    button.disabled = true;
    try {
      await (paused ? edits.resumeAll() : edits.pauseAll());
    } catch (error) {
      problem = `Nothing was changed: ${error.message}`;
      drawHead();
    } finally {
      button.disabled = false;
    }
  });
}

function put(id, words, tone = "") {
  const node = byId(id);
  if (node.textContent !== words) node.textContent = words;
  node.className = tone;
}

function banner(words, tone) {
  const node = byId("banner");
  node.hidden = !words;
  if (node.textContent !== words) node.textContent = words;
  node.className = `banner ${tone}`;
}

export function drawHead() {
  const lost = state.lostSince != null;
  byId("lost").hidden = !lost;
  if (lost) {
    byId("lost").textContent = `The agent does not answer since ${f.time(state.lostSince)}: what you see is as it was then. Trying again…`;
  }
  const head = state.head;
  if (!head) return;
  const { health, totals, lateness } = head;
  if (lost) {
    for (const tile of ["tile-ready", "tile-database", "tile-realtime"]) put(tile, "unknown", "warn");
  } else {
    put("tile-ready", health.ready ? "✓ ready" : "▼ not ready", health.ready ? "good" : "bad");
    put("tile-database", health.database === "up" ? "✓ up" : "✖ away", health.database === "up" ? "good" : "bad");
    put("tile-realtime", health.realtime === "live" ? "✓ live" : "▼ not live", health.realtime === "live" ? "good" : "warn");
  }
  put("tile-rate", f.perSecond(totals.visits_per_second));
  put("tile-backlog", f.count(totals.backlog));
  put("tile-late", f.seconds(lateness.p99));
  document.title = `${lost ? "✖ " : health.ready ? "" : "▼ "}visit-pacer`;
  const said = [];
  if (problem) said.push(problem);
  if (health.database !== "up") said.push(`The database is ${health.database}.`);
  else if (!health.ready) said.push(`Not ready: ${health.unready.join("; ")}.`);
  const bad = said.length > 0;
  if (head.paused) {
    said.push("Everything is paused: nothing is stored. What falls due meanwhile drains afterwards.");
  }
  if (!bad && health.realtime !== "live") {
    said.push(`Realtime is not live: ${health.realtime}. Pacing goes on; edits are seen within two seconds.`);
  }
  banner(said.join(" "), bad ? "bad" : "warn");
  const mark = byId("nav-health-mark");
  const troubled = !health.ready || health.database !== "up" || health.realtime !== "live";
  mark.hidden = !troubled;
  mark.textContent = troubled ? "!" : "";
  const button = byId("pause-all");
  button.hidden = head.read_only;
  if (!asked) button.textContent = head.paused ? "Resume everything" : "Pause everything";
  button.classList.toggle("primary", head.paused);
  put("about", `${head.agent.name}, version ${head.agent.version}${head.read_only ? ", read-only" : ""}`);
}

function list(pairs) {
  const made = document.createElement("dl");
  made.className = "facts";
  for (const [name, value] of pairs) {
    const pair = document.createElement("div");
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    pair.append(dt, dd);
    made.append(pair);
  }
  return made;
}

function items(into, all, none, make) {
  const signature = JSON.stringify(all);
  if (into.dataset.of === signature) return;
  into.dataset.of = signature;
  if (all.length === 0) {
    const item = document.createElement("li");
    item.className = "note";
    item.textContent = none;
    into.replaceChildren(item);
    return;
  }
  into.replaceChildren(...all.map((one) => {
    const item = document.createElement("li");
    const at = document.createElement("time");
    at.textContent = f.time(one.at);
    item.append(at, " ");
    make(item, one);
    return item;
  }));
}

function idLink(id) {
  const link = document.createElement("a");
  link.href = `#/rows/${id}`;
  link.textContent = id.slice(0, 8);
  return link;
}

export function drawHealth() {
  if (!state.head) return;
  const { lateness, realtime, agents, notes, totals, health } = state.head;
  drawBars(lateness);
  byId("ways").replaceChildren(list([
    ...realtime.ways.map((way) => [way.way, `${way.state}, for ${f.seconds(way.since_seconds)}`]),
    ["Echo of our last write", f.seconds(realtime.echo_round_trip)],
  ]));
  items(byId("events"), realtime.events, "None yet.", (item, event) => {
    item.append(`${event.way ?? ""} ${event.what} `);
    if (event.id) item.append(idLink(event.id));
  });
  byId("agents").replaceChildren(...agents.map((agent) => {
    const line = document.createElement("p");
    line.className = "agent";
    const name = document.createElement("strong");
    name.textContent = agent.name;
    const me = agent.me ? " (this one)" : "";
    const serving = agent.serving ? "serving" : "not serving";
    line.append(name, `${me}: ${f.count(agent.rows_owned)} of ${f.count(agent.rows)} rows, ${serving}, seen ${f.seconds(Math.max(0, agent.seen_seconds_ago))} ago, Realtime ${agent.realtime ?? "unknown"}`);
    return line;
  }));
  byId("counts").replaceChildren(list([
    ["Visits stored", f.count(totals.visits_stored)],
    ["Batches committed", f.count(totals.batches)],
    ["Rows refused by the database", f.count(totals.refused)],
    ["Batches that failed", f.count(totals.failed)],
    ["Answers lost", f.count(totals.unknown)],
    ["Edits found by a sync first", f.count(totals.repaired)],
    ["Database", health.database],
  ]));
  items(byId("notes"), notes, "None: nothing had to be repaired, and nothing went wrong.", (item, note) => {
    item.classList.add(note.level);
    const level = document.createElement("span");
    level.className = "level";
    level.textContent = { error: "✖ error", warn: "▼ warning", info: "✓ repair" }[note.level] ?? note.level;
    item.append(level, ` ${note.text} `);
    if (note.id) item.append(idLink(note.id));
  });
}

function drawBars({ buckets, p50, p99 }) {
  const most = Math.max(1, ...buckets.map((bucket) => bucket.count));
  const bars = byId("late-bars");
  if (bars.children.length !== buckets.length) {
    bars.replaceChildren(...buckets.map((bucket) => {
      const column = document.createElement("div");
      const fill = document.createElement("span");
      const name = document.createElement("small");
      name.textContent = bucket.le == null ? "more" : f.seconds(bucket.le).replace(" ", " ");
      column.append(fill, name);
      return column;
    }));
  }
  buckets.forEach((bucket, n) => {
    bars.children[n].firstChild.style.height = `${bucket.count ? Math.max(2, (100 * bucket.count) / most) : 0}%`;
    bars.children[n].title = `${f.count(bucket.count)} batches`;
  });
  const all = buckets.reduce((sum, bucket) => sum + bucket.count, 0);
  byId("late-words").textContent = all
    ? `${f.count(all)} batches: half within ${f.seconds(p50)}, 99 of 100 within ${f.seconds(p99)}.`
    : "No batch yet.";
}
