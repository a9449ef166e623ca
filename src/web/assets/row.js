// One row from near: why it is where it is, its curves, and the edits of it. A panel; on a phone the whole screen.
import { state, rowFromNear, keepSeconds, edits } from "./api.js";
import * as f from "./format.js";
import { secondsChart, windowChart, secondsData, windowData } from "./charts.js";

const WINDOW_EVERY = 10000;
// How long a question waits for the second click.
const SURE_WITHIN = 8000;
const { SECONDS } = f;

const panel = () => document.getElementById("row");
let open = null;

const HTML = `
  <div class="row-head">
    <div>
      <p class="eyebrow" data-of="id"></p>
      <h2 id="row-title" tabindex="-1"></h2>
    </div>
    <button type="button" class="quiet icon" data-of="close" aria-label="Close">✕</button>
  </div>
  <p class="why-line"><span class="status"><span class="shape" aria-hidden="true"></span><span class="word"></span></span>
    <span data-of="why"></span></p>
  <p class="note" data-of="by-hand" hidden>In Studio or in psql: <code class="to-copy"></code></p>
  <p class="problem" role="alert" data-of="load-problem" hidden></p>
  <dl class="facts" data-of="facts"></dl>
  <h3>Per second, the last two minutes</h3>
  <div class="chart" data-of="seconds" role="img" aria-label="Visits stored and asked for in each second of the last two minutes"></div>
  <p class="note" data-of="seconds-words"></p>
  <h3>Over the whole window</h3>
  <div class="chart" data-of="window" role="img" aria-label="Visits stored and asked for, added up over the whole window"></div>
  <p class="note" data-of="window-words"></p>
  <section class="edit" data-of="edit" aria-labelledby="edit-title">
    <h3 id="edit-title">Change it</h3>
    <p class="note">Each of these is an edit of the table, as in Studio.</p>
    <div class="edit-line"><button type="button" data-of="toggle"></button><span class="note" data-of="toggle-words"></span></div>
    <form class="edit-line" data-of="rate">
      <label>Rate <input name="visits" inputmode="decimal" required pattern="[0-9]+([.][0-9]{1,9})?" title="A number, with up to nine decimals" autocomplete="off"></label>
      <label>visits a <select name="period" required><option value="">choose…</option><option>second</option><option>minute</option><option>hour</option><option>day</option></select></label>
      <button type="submit">Set rate</button>
      <span class="note" data-of="rate-words"></span>
    </form>
    <form class="edit-line" data-of="distribute">
      <label>Store <input name="visits" type="number" min="1" max="10000" value="50" required> visits now</label>
      <button type="submit">Store now</button>
      <span class="note" data-of="distribute-words"></span>
    </form>
    <p class="problem" role="alert" data-of="problem" hidden></p>
    <p class="done" role="status" data-of="done"></p>
  </section>
  <p class="note" data-of="read-only" hidden>This page is read-only here: edit the table in Studio or with psql.</p>
  <h3 data-of="history-title" hidden>Edits</h3>
  <ol class="log" data-of="history" tabindex="0" aria-label="Edits of this row"></ol>`;

const part = (name) => panel().querySelector(`[data-of="${name}"]`);

export function openRow(id, leave) {
  closeRow();
  open = { id, edits: [], window: null, charts: null, draft: false, busy: false, asked: null };
  panel().innerHTML = HTML;
  panel().hidden = false;
  document.body.classList.add("has-row");
  part("close").addEventListener("click", leave);
  part("toggle").addEventListener("click", toggle);
  part("rate").addEventListener("submit", setRate);
  part("rate").addEventListener("input", () => { open.draft = true; });
  part("distribute").addEventListener("submit", distribute);
  drawRow({ rows: true, head: true });
  document.getElementById("row-title").focus({ preventScroll: true });
  load();
  open.timer = setInterval(load, WINDOW_EVERY);
}

export function closeRow() {
  if (!open) return;
  clearInterval(open.timer);
  forgetAsked();
  open.charts?.forEach((chart) => chart.destroy());
  open = null;
  panel().hidden = true;
  panel().replaceChildren();
  document.body.classList.remove("has-row");
}

export function redrawCharts() {
  if (!open?.charts) return;
  open.charts.forEach((chart) => chart.destroy());
  open.charts = null;
  drawCharts();
}

async function load() {
  const asked = open;
  try {
    const near = await rowFromNear(asked.id);
    if (open !== asked) return;
    keepSeconds(near.seconds);
    sayLoad("");
    open.window = near.curve;
    open.edits = near.edits;
    if (near.row && !state.rows.has(asked.id)) state.rows.set(asked.id, near.row);
    drawRow({ rows: true, row: true });
    drawHistory();
  } catch (error) {
    if (open === asked) sayLoad(error.message);
  }
}

export function drawRow(changed) {
  const row = state.rows.get(open.id);
  if (!row) {
    document.getElementById("row-title").textContent = state.head ? "This row is not there (any more)" : "Asking the agent…";
    part("why").textContent = "It may have been deleted; its visits stay, with their label.";
    part("edit").hidden = true;
    return;
  }
  if (changed.rows || changed.head) drawFacts(row);
  if (changed.row || changed.rows) drawCharts();
}

function drawFacts(row) {
  const stopped = state.head?.paused;
  const status = f.look(row.status, stopped);
  part("id").textContent = row.id;
  document.getElementById("row-title").textContent = f.partner(row);
  const badge = panel().querySelector(".why-line .status");
  badge.className = `status ${status.tone}`;
  badge.querySelector(".shape").textContent = status.shape;
  badge.querySelector(".word").textContent = row.status;
  part("why").textContent = f.reason(row, stopped) ?? `It is ${status.words}.`;
  const now = state.head?.now;
  facts([
    ["Asked", f.pace(row)],
    ["Measured", f.measured(row) === f.NONE ? f.NONE : `${f.measured(row)} / ${row.time_period}`],
    ["Stored", `${f.count(row.distributed)} of ${f.count(row.total)}`],
    ["Due by now", f.count(row.due)],
    ["Owed", f.count(row.backlog)],
    ["Window", `${f.moment(row.start_time)} to ${row.end_time ? f.moment(row.end_time) : "no end"}`],
    ...(row.status === "scheduled" && row.start_time ? [["Begins", `${f.moment(row.start_time)}, ${f.relative(row.start_time, now)}`]] : []),
    ["Last visit due", row.completes_at ? `${f.moment(row.completes_at)}, ${f.relative(row.completes_at, now)}` : "–"],
    ["Stored by", row.agent ?? "another agent"],
  ]);
  const byHand = statement(row);
  part("by-hand").hidden = byHand == null;
  part("by-hand").querySelector("code").textContent = byHand;
  const readOnly = state.head?.read_only ?? false;
  part("edit").hidden = readOnly;
  part("read-only").hidden = !readOnly;
  drawEdits(row);
}

function drawEdits(row) {
  const cannotToggle = whyNotToggled(row);
  part("toggle").textContent = row.is_active ? "Pause this row" : "Resume this row";
  part("toggle").disabled = open.busy || cannotToggle != null;
  part("toggle-words").textContent = cannotToggle ?? (row.is_active
    ? "Stops at that commit; the time until it is resumed is not made up."
    : "Goes on from where it is, without a burst.");
  const form = part("rate");
  form.querySelector("button").disabled = open.busy;
  part("rate-words").textContent = row.status === "invalid"
    ? "The database takes it, and the row goes on at once, when the rest of the row is right."
    : "Holds from that moment on; the past stays as it was.";
  if (!open.draft && !form.contains(document.activeElement)) {
    form.elements.visits.value = Number(row.visits_per_unit) >= 0 ? row.visits_per_unit ?? "" : "";
    form.elements.period.value = row.time_period in SECONDS ? row.time_period : "";
  }
  const cannotStore = whyNotStored(row);
  part("distribute").querySelector("button").disabled = open.busy || cannotStore != null;
  part("distribute-words").textContent = cannotStore
    ?? "For this partner, over its active rows; the rows then wait until their curves have caught up.";
}

// What mends a row that this page cannot mend; null where there is nothing of the kind.
function statement(row) {
  const column = {
    invalid: row.reason?.match(/^Set aside: ([a-z_]+) is /)?.[1] ?? "…",
    ended: "end_time",
    scheduled: row.start_time ? null : "start_time",
  }[row.status];
  if (column == null || column === "visits_per_unit" || column === "time_period") return null;
  return `update visit_distribution set ${column} = … where id = '${row.id}';`;
}

function whyNotToggled(row) {
  if (row.status !== "invalid" || row.is_active) return null;
  // Of a bad row the agent itself keeps nothing.
  return row.partner_id == null
    ? "What is_active says of this row is not known here yet."
    : "Its is_active is false; it can be resumed when the row is right.";
}

function whyNotStored(row) {
  if (row.partner_id == null) return "Its partner is not known here yet.";
  if (state.head?.paused) return "Not while everything is paused: resume everything first.";
  return {
    paused: "Not while the row is paused: resume it first.",
    scheduled: "Not before the row has begun.",
    draining: "Not after the window: move end_time first.",
    ended: "Not after the window: move end_time first.",
    completed: "Every visit of total_visits is stored.",
    invalid: "Not before the row is right.",
  }[row.status] ?? null;
}

function facts(pairs) {
  const list = part("facts");
  if (list.children.length !== pairs.length) {
    list.replaceChildren(...pairs.map(() => {
      const pair = document.createElement("div");
      pair.append(document.createElement("dt"), document.createElement("dd"));
      return pair;
    }));
  }
  pairs.forEach(([name, value], n) => {
    const [dt, dd] = list.children[n].children;
    if (dt.textContent !== name) dt.textContent = name;
    if (dd.textContent !== value) dd.textContent = value;
  });
}

function drawCharts() {
  if (!open.window || state.seconds.size === 0) return;
  const seconds = secondsData(state.seconds);
  const curve = windowData(open.window);
  if (open.charts) {
    open.charts[0].set(seconds);
    open.charts[1].set(curve);
  } else {
    const marks = () => open?.edits ?? [];
    open.charts = [secondsChart(part("seconds"), seconds, marks), windowChart(part("window"), curve, marks)];
  }
  const known = [...state.seconds.values()].filter((second) => second.asked != null);
  const sum = (of) => known.reduce((all, second) => all + second[of], 0);
  part("seconds-words").textContent = known.length
    ? `A bar is what is stored, a dot what the curve asks for. In these ${known.length} seconds ${f.count(sum("asked"))} visits fell due, and ${f.count(sum("stored"))} are dated in them.`
    : "The pace of these seconds is not known any more; from the last edit on it is.";
  part("window-words").textContent = open.window.stored.length
    ? "Solid: stored. Dashed: the curve as the row asks for it now. An edit is a dotted line."
    : "Nothing is stored yet.";
}

function drawHistory() {
  part("history-title").hidden = open.edits.length === 0;
  part("history").replaceChildren(...[...open.edits].reverse().map((edit) => {
    const item = document.createElement("li");
    const at = document.createElement("time");
    at.textContent = `${f.moment(edit.at)} ${f.time(edit.at)}`;
    item.append(at, ` ${edit.what.replace(/\bnull\b/g, f.NONE)}${edit.by ? `, by ${edit.by}` : ""}`);
    return item;
  }));
}

function sayLoad(problem) {
  part("load-problem").textContent = problem;
  part("load-problem").hidden = !problem;
}

// Beside the button that was pressed, where whoever pressed it looks.
function sayAt(button) {
  button.closest(".edit-line").after(part("problem"), part("done"));
}

function say(problem, done = "") {
  part("problem").textContent = problem;
  part("problem").hidden = !problem;
  part("done").textContent = done;
  part(problem ? "problem" : "done").scrollIntoView({ block: "nearest" });
}

async function attempt(button, edit, done) {
  const asked = open;
  say("");
  sayAt(button);
  asked.busy = true;
  drawRow({ rows: true });
  let said;
  try {
    said = done(await edit());
  } catch (error) {
    said = { problem: error.message };
  }
  asked.busy = false;
  if (open !== asked) return;
  drawRow({ rows: true });
  say(said.problem ?? "", said.words);
  load();
}

function toggle(event) {
  const row = state.rows.get(open.id);
  const pause = row.is_active;
  attempt(event.target, () => (pause ? edits.pause(row.id) : edits.resume(row.id)), () => ({ words: pause ? "Paused." : "Resumed." }));
}

function setRate(event) {
  event.preventDefault();
  const { visits, period } = event.target.elements;
  const consequence = hasty(state.rows.get(open.id), Number(visits.value), period.value);
  if (consequence && !sure(event.submitter, `rate ${visits.value} ${period.value}`, `${consequence} Click again`)) return;
  attempt(event.submitter, () => edits.rate(open.id, visits.value.trim(), period.value), () => {
    open.draft = false;
    return { words: `The rate is ${f.rate(visits.value.trim(), period.value)} from now on.` };
  });
}

function distribute(event) {
  event.preventDefault();
  const row = state.rows.get(open.id);
  const visits = event.target.elements.visits.valueAsNumber;
  const button = event.submitter;
  // It cannot be taken back.
  if (!sure(button, `store ${visits}`, `Store ${f.count(visits)} now? Click again`)) return;
  attempt(button, () => edits.distribute(row.partner_id, visits), (answer) => {
    const why = answer.message ? `: ${answer.message}.` : ".";
    if (answer.added === 0) return { problem: `Nothing was stored${why}` };
    const were = answer.added === 1 ? "was" : "were";
    if (answer.added < visits) return { problem: `Only ${f.count(answer.added)} of ${f.visits(visits)} ${were} stored${why}` };
    return { words: `${f.visits(visits)} ${were} stored${why}` };
  });
}

// What a change of the rate would do that one may not have meant; null where there is nothing of the kind.
function hasty(row, visits, period) {
  if (!row) return null;
  const before = Number(row.visits_per_unit) / SECONDS[row.time_period];
  const after = visits / SECONDS[period];
  const left = row.total - row.distributed;
  const from = row.time_period === period ? f.number(row.visits_per_unit) : f.rate(row.visits_per_unit, row.time_period);
  const change = `${before > 0 ? `${from} → ` : ""}${f.rate(visits, period)}`;
  if (after > 0 && left > 0 && left / after < 60) {
    return `${change}: the other ${f.visits(left)} would be stored within ${left / after < 10 ? "seconds" : "a minute"}.`;
  }
  if (before > 0 && after > 10 * before) return `${change}: ${f.count(after / before)} times as many a second.`;
  return null;
}

// Whether a button was pressed a second time, for the same thing, soon after the first.
function sure(button, what, question) {
  const before = open.asked?.what;
  forgetAsked();
  if (before === what) return true;
  open.asked = { what, button, label: button.textContent, timer: setTimeout(forgetAsked, SURE_WITHIN) };
  button.textContent = question;
  return false;
}

function forgetAsked() {
  if (!open?.asked) return;
  const { button, label, timer } = open.asked;
  clearTimeout(timer);
  button.textContent = label;
  open.asked = null;
}
