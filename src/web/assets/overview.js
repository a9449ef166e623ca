// The tiles and banners on top, the button that pauses everything, and the view of the agent's health.
import { state, edits } from "./api.js";
import { byId, confirm, element, setFacts, setText } from "./dom.js";
import * as f from "./format.js";

const PAUSE_ALL = "Pause everything? Visits that fall due meanwhile are stored after you resume.";

// Of the last attempt to pause or resume everything.
let problem = "";

export function initOverview() {
  // The panel of a distribution begins below the banner.
  const banner = byId("disconnected");
  new ResizeObserver(() => document.documentElement.style.setProperty("--banner", `${banner.getBoundingClientRect().height}px`)).observe(banner);
  byId("pause-all").addEventListener("click", pauseAll);
}

async function pauseAll({ currentTarget: button }) {
  const { paused } = state.overview ?? {};
  problem = "";
  if (!paused && !(await confirm(PAUSE_ALL, "Pause everything", "Keep running"))) return;
  button.disabled = true;
  try {
    await (paused ? edits.resumeAll() : edits.pauseAll());
  } catch (error) {
    problem = `${paused ? "Resume" : "Pause"} failed: ${error.message}.`;
    drawOverview();
  } finally {
    button.disabled = false;
  }
}

function setTile(name, text, tone = "") {
  const tile = byId(`tile-${name}`);
  setText(tile, text);
  tile.className = tone;
}

function setState(name, isGood, good, bad, tone = "bad") {
  if (state.disconnectedSince != null) setTile(name, "unknown", "warn");
  else setTile(name, isGood ? good : bad, isGood ? "good" : tone);
}

function setBanner(texts, tone) {
  const banner = byId("banner");
  banner.hidden = texts.length === 0;
  setText(banner, texts.join(" "));
  banner.className = `banner ${tone}`;
}

export function drawOverview() {
  const isDisconnected = state.disconnectedSince != null;
  byId("disconnected").hidden = !isDisconnected;
  if (isDisconnected) {
    setText(byId("disconnected"), `No connection to the agent since ${f.time(state.disconnectedSince)}; showing the last known state. Reconnecting…`);
  }
  if (!state.overview) return;
  const { agent, health, totals, delay, paused, read_only: isReadOnly } = state.overview;
  const { ready, database, realtime } = health;
  setState("ready", ready, "✓ ready", "▼ not ready");
  setState("database", database.up, "✓ up", "✖ unavailable");
  setState("realtime", realtime.live, "✓ live", "▼ not live", "warn");
  setTile("rate", f.perSecond(totals.visits_per_second));
  setTile("backlog", f.count(totals.backlog));
  setTile("delay", f.seconds(delay.p99));
  document.title = `${isDisconnected ? "✖ " : ready ? "" : "▼ "}visit-pacer`;
  const texts = [];
  if (problem) texts.push(problem);
  if (!database.up) texts.push(`Database: ${database.detail}.`);
  else if (!ready) texts.push(`Not ready: ${health.unready.join("; ")}.`);
  const isBad = texts.length > 0;
  if (paused) texts.push("Everything is paused. Visits that fall due meanwhile are stored after you resume.");
  if (!isBad && !realtime.live) {
    texts.push(`Realtime is not live: ${realtime.detail}. Visits are still stored; edits take effect within two seconds.`);
  }
  setBanner(texts, isBad ? "bad" : "warn");
  byId("nav-health-mark").hidden = ready && database.up && realtime.live;
  const button = byId("pause-all");
  button.hidden = isReadOnly;
  setText(button, paused ? "Resume everything" : "Pause everything");
  button.classList.toggle("primary", paused);
  setText(byId("about"), `${agent.name}, version ${agent.version}${isReadOnly ? ", read-only" : ""}`);
}

function setLog(list, entries, fill) {
  const signature = JSON.stringify(entries);
  if (list.dataset.of === signature) return;
  list.dataset.of = signature;
  if (entries.length === 0) {
    list.replaceChildren(element("li", "note", "No entries."));
    return;
  }
  list.replaceChildren(...entries.map((entry) => {
    const item = element("li", "", element("time", "", f.time(entry.at)), " ");
    fill(item, entry);
    return item;
  }));
}

function link(id) {
  const made = element("a", "", id.slice(0, 8));
  made.href = `#/distributions/${id}`;
  return made;
}

export function drawHealth() {
  if (!state.overview) return;
  const { agent: self, delay, realtime, agents, events, totals, health } = state.overview;
  drawBars(delay);
  setFacts(byId("transports"), [
    ...realtime.transports.map(({ transport, state, since_seconds }) => [transport, `${state}, for ${f.seconds(since_seconds)}`]),
    ["Last echo", f.seconds(realtime.echo_seconds)],
  ]);
  setLog(byId("realtime-events"), realtime.events, (item, event) => {
    item.append(`${event.transport ?? ""} ${event.what} `);
    if (event.id) item.append(link(event.id));
  });
  byId("agents").replaceChildren(...agents.map((agent) => element("p", "agent", element("strong", "", agent.name), [
    agent.name === self.name ? " (this agent)" : "",
    `: ${f.count(agent.rows_owned)} of ${f.count(agent.rows)} distributions, ${agent.serving ? "live" : "not live"}`,
    `, last heartbeat ${f.seconds(Math.max(0, agent.seen_seconds_ago))} ago, Realtime ${agent.realtime ?? "unknown"}`,
  ].join(""))));
  setFacts(byId("counts"), [
    ["Visits stored", f.count(totals.visits_stored)],
    ["Batches committed", f.count(totals.batches)],
    ["Batches failed", f.count(totals.failed)],
    ["Outcomes unknown", f.count(totals.unknown)],
    ["Distributions refused", f.count(totals.refused)],
    ["Edits by sync", f.count(totals.repaired)],
    ["Database", health.database.detail],
  ]);
  setLog(byId("agent-events"), events, (item, event) => {
    item.classList.add(event.level);
    item.append(element("span", "level", event.level === "warn" ? "▼ warning" : "✓ resolved"));
    item.append(` ${event.message}${event.reason ? `: ${event.reason}` : ""} `);
    if (event.distribution_id) item.append(link(event.distribution_id));
  });
}

function drawBars({ buckets, p50, p99 }) {
  const most = Math.max(1, ...buckets.map((bucket) => bucket.count));
  const bars = byId("delay-bars");
  if (bars.children.length !== buckets.length) {
    bars.replaceChildren(...buckets.map(({ le }) =>
      element("div", "", element("span"), element("small", "", le == null ? "more" : f.seconds(le)))));
  }
  buckets.forEach(({ count }, n) => {
    const bar = bars.children[n];
    bar.firstChild.style.height = `${count ? Math.max(2, (100 * count) / most) : 0}%`;
    bar.title = `${f.count(count)} batches`;
  });
  const all = buckets.reduce((sum, { count }) => sum + count, 0);
  setText(byId("delay-text"), all ? `${f.count(all)} batches: p50 ${f.seconds(p50)}, p99 ${f.seconds(p99)}` : "No batches yet.");
}
