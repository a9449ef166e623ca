// One distribution: its reason, its charts and its edits. A panel; on a phone the whole screen.
import { state, readDetail, keepSeconds, edits } from "./api.js";
import { byId, confirm, element, setFacts, setText } from "./dom.js";
import * as f from "./format.js";
import { secondsChart, totalsChart, secondsData, totalsData } from "./charts.js";

const READ_EVERY_MS = 10000;
const { PERIODS } = f;

const panel = () => byId("detail");
let open = null;

const HTML = `
  <div class="detail-head">
    <div>
      <p class="eyebrow" data-of="id"></p>
      <h2 id="detail-title" tabindex="-1"></h2>
    </div>
    <button type="button" class="quiet icon" data-of="close" aria-label="Close">✕</button>
  </div>
  <p class="reason-line"><span class="status"><span class="shape" aria-hidden="true"></span><span class="word"></span></span>
    <span data-of="reason"></span></p>
  <p class="note" data-of="statement" hidden>In Studio or psql: <code class="to-copy"></code></p>
  <p class="problem" role="alert" data-of="load-problem" hidden></p>
  <dl class="facts" data-of="facts"></dl>
  <h3>Visits per second</h3>
  <div class="chart" data-of="seconds" role="img" aria-label="Visits per second: stored and target, last two minutes"></div>
  <p class="note" data-of="seconds-text"></p>
  <h3>Total visits</h3>
  <div class="chart" data-of="totals" role="img" aria-label="Total visits: stored and target, whole window"></div>
  <p class="note" data-of="totals-text"></p>
  <section class="edit" data-of="edit" aria-labelledby="edit-title">
    <h3 id="edit-title">Edit</h3>
    <p class="note">Each change is an edit of the table, as in Studio.</p>
    <div class="edit-line"><button type="button" data-of="toggle"></button><span class="note" data-of="toggle-text"></span></div>
    <form class="edit-line" data-of="rate">
      <label>Rate <input name="visits" inputmode="decimal" required pattern="[0-9]+([.][0-9]{1,9})?" title="A number with up to nine decimals" autocomplete="off"></label>
      <label>visits per <select name="period" required><option value="">choose…</option><option>second</option><option>minute</option><option>hour</option><option>day</option></select></label>
      <button type="submit">Set rate</button>
      <span class="note" data-of="rate-text"></span>
    </form>
    <form class="edit-line" data-of="distribute">
      <label>Store <input name="visits" type="number" min="1" max="10000" value="50" required> visits now</label>
      <button type="submit">Store now</button>
      <span class="note" data-of="distribute-text"></span>
    </form>
    <p class="problem" role="alert" data-of="problem" hidden></p>
    <p class="done" role="status" data-of="done"></p>
  </section>
  <p class="note" data-of="read-only" hidden>Editing is disabled here (read-only). Edit the table in Studio or psql.</p>
  <h3 data-of="history-title" hidden>Edits</h3>
  <ol class="log" data-of="history" tabindex="0" aria-label="Edits"></ol>`;

const part = (name) => panel().querySelector(`[data-of="${name}"]`);

export function openDetail(id, leave) {
  closeDetail();
  open = { id, edits: [], curve: null, charts: null, isDraft: false, isBusy: false };
  panel().innerHTML = HTML;
  panel().hidden = false;
  document.body.classList.add("has-detail");
  part("close").addEventListener("click", leave);
  part("toggle").addEventListener("click", toggle);
  part("rate").addEventListener("submit", setRate);
  part("rate").addEventListener("input", () => { open.isDraft = true; });
  part("distribute").addEventListener("submit", distribute);
  drawDetail({ distributions: true });
  byId("detail-title").focus({ preventScroll: true });
  load();
  open.timer = setInterval(load, READ_EVERY_MS);
}

export function closeDetail() {
  if (!open) return;
  clearInterval(open.timer);
  open.charts?.forEach((chart) => chart.destroy());
  open = null;
  panel().hidden = true;
  panel().replaceChildren();
  document.body.classList.remove("has-detail");
}

export function redrawCharts() {
  if (!open?.charts) return;
  open.charts.forEach((chart) => chart.destroy());
  open.charts = null;
  drawCharts();
}

async function load() {
  const loading = open;
  try {
    const detail = await readDetail(loading.id);
    if (open !== loading) return;
    keepSeconds(detail.seconds);
    setProblem("load-problem", "");
    open.curve = detail.curve;
    open.edits = detail.edits;
    if (detail.distribution && !state.distributions.has(loading.id)) state.distributions.set(loading.id, detail.distribution);
    drawDetail({ distributions: true });
    drawHistory();
  } catch (error) {
    if (open === loading) setProblem("load-problem", error.message);
  }
}

export function drawDetail(changed) {
  const row = state.distributions.get(open.id);
  if (!row) {
    setText(byId("detail-title"), state.overview ? "Distribution not found" : "Loading…");
    setText(part("reason"), state.overview ? "It may have been deleted. Its visits remain." : "");
    part("edit").hidden = true;
    return;
  }
  if (changed.distributions || changed.overview) drawFacts(row);
  if (changed.distributions || changed.seconds) drawCharts();
}

function drawFacts(row) {
  const { now, paused, read_only: isReadOnly = false } = state.overview ?? {};
  const status = f.status(row.status, paused);
  const at = (time) => `${f.date(time)}, ${f.relative(time, now)}`;
  setText(part("id"), row.id);
  setText(byId("detail-title"), f.partner(row));
  const badge = panel().querySelector(".reason-line .status");
  badge.className = `status ${status.tone}`;
  setText(badge.querySelector(".shape"), status.shape);
  setText(badge.querySelector(".word"), row.status);
  setText(part("reason"), row.reason ?? `${status.meaning[0].toUpperCase()}${status.meaning.slice(1)}.`);
  setFacts(part("facts"), [
    ["Target", f.target(row)],
    ["Actual", f.actual(row) === f.NONE ? f.NONE : `${f.actual(row)} / ${row.time_period}`],
    ["Stored", `${f.count(row.distributed)} of ${f.count(row.total_visits)}`],
    ["Due", f.count(row.due)],
    ["Backlog", f.count(row.backlog)],
    ["Window", f.range(row.start_time, row.end_time)],
    ...(row.status === "scheduled" && row.start_time ? [["Starts", at(row.start_time)]] : []),
    ["Ends", row.completes_at ? at(row.completes_at) : f.NONE],
    ["Agent", row.agent ?? "another agent"],
  ]);
  const repair = statement(row);
  part("statement").hidden = repair == null;
  setText(part("statement").querySelector("code"), repair ?? "");
  part("edit").hidden = isReadOnly;
  part("read-only").hidden = !isReadOnly;
  drawEdits(row);
}

function drawEdits(row) {
  const noToggle = whyNoToggle(row);
  setText(part("toggle"), row.is_active ? "Pause" : "Resume");
  part("toggle").disabled = open.isBusy || noToggle != null;
  setText(part("toggle-text"), noToggle ?? (row.is_active
    ? "No visits are stored until you resume. The paused time is not backfilled."
    : "Continues from the current count, without a burst."));
  const form = part("rate");
  form.querySelector("button").disabled = open.isBusy;
  setText(part("rate-text"), row.status === "invalid"
    ? "Takes effect once all values are valid."
    : "Applies from now on. Earlier visits do not change.");
  if (!open.isDraft && !form.contains(document.activeElement)) {
    form.elements.visits.value = Number(row.visits_per_unit) >= 0 ? row.visits_per_unit ?? "" : "";
    form.elements.period.value = row.time_period in PERIODS ? row.time_period : "";
  }
  const noStore = whyNoStore(row);
  part("distribute").querySelector("button").disabled = open.isBusy || noStore != null;
  setText(part("distribute-text"), noStore
    ?? "For all active distributions of this partner. They then wait until their curves catch up.");
}

// The edit that helps and that this panel has no form for.
function statement(row) {
  const column = {
    invalid: row.reason?.match(/^([a-z_]+) is /)?.[1],
    ended: "end_time",
    scheduled: row.start_time ? null : "start_time",
  }[row.status];
  if (column == null || column === "visits_per_unit" || column === "time_period") return null;
  return `update visit_distribution set ${column} = … where id = '${row.id}';`;
}

function whyNoToggle(row) {
  if (row.status !== "invalid" || row.is_active) return null;
  // The agent keeps nothing of an invalid row; what it has is read a little later.
  return row.partner_id == null ? "Unknown yet." : "Paused; can be resumed once all values are valid.";
}

function whyNoStore(row) {
  if (row.partner_id == null) return "Partner unknown yet.";
  if (state.overview?.paused) return "Everything is paused; resume everything first.";
  return {
    paused: "Paused; resume it first.",
    scheduled: "Starts later.",
    draining: "The window is over; change end_time first.",
    ended: "The window is over; change end_time first.",
    completed: "All visits of total_visits are stored.",
    invalid: "Fix the invalid values first.",
  }[row.status] ?? null;
}

function drawCharts() {
  if (!open.curve || state.seconds.size === 0) return;
  const seconds = secondsData(state.seconds);
  const totals = totalsData(open.curve);
  if (open.charts) {
    open.charts[0].set(seconds);
    open.charts[1].set(totals);
  } else {
    const edited = () => open?.edits ?? [];
    open.charts = [secondsChart(part("seconds"), seconds, edited), totalsChart(part("totals"), totals, edited)];
  }
  const known = [...state.seconds.values()].filter((second) => second.target != null);
  const sum = (of) => f.count(known.reduce((all, second) => all + second[of], 0));
  setText(part("seconds-text"), known.length
    ? `Bars: stored. Dots: target. Last ${known.length} s: ${sum("target")} due, ${sum("stored")} stored.`
    : "No history for these seconds.");
  setText(part("totals-text"), open.curve.stored.length
    ? "Solid: stored. Dashed: target. Dotted: edits."
    : "No visits stored yet.");
}

function drawHistory() {
  part("history-title").hidden = open.edits.length === 0;
  part("history").replaceChildren(...open.edits.toReversed().map(({ at, change, by }) =>
    element("li", "", element("time", "", f.instant(at)), ` ${change}${by ? `, by ${by}` : ""}`)));
}

function setProblem(name, text) {
  part(name).hidden = !text;
  setText(part(name), text);
}

function report(problem, done = "") {
  setProblem("problem", problem);
  setText(part("done"), done);
  part(problem ? "problem" : "done").scrollIntoView({ block: "nearest" });
}

// Makes an edit, and reports below the button what came of it.
async function attempt(button, edit, outcome) {
  const editing = open;
  button.closest(".edit-line").after(part("problem"), part("done"));
  report("");
  editing.isBusy = true;
  drawDetail({ distributions: true });
  let result;
  try {
    result = outcome(await edit());
  } catch (error) {
    result = { problem: error.message };
  }
  editing.isBusy = false;
  if (open !== editing) return;
  drawDetail({ distributions: true });
  report(result.problem ?? "", result.done);
  load();
}

function toggle({ target }) {
  const { id, is_active: isActive } = state.distributions.get(open.id);
  attempt(target, () => (isActive ? edits.pause(id) : edits.resume(id)), () => ({ done: isActive ? "Paused." : "Resumed." }));
}

async function setRate(event) {
  event.preventDefault();
  const asking = open;
  const { submitter, target: form } = event;
  const { visits: { value: typed }, period: { value: period } } = form.elements;
  const visits = typed.trim();
  const warning = rateWarning(state.distributions.get(open.id), Number(visits), period);
  if (warning && !(await confirm(warning, "Set rate", "Keep rate"))) return;
  if (open !== asking) return;
  attempt(submitter, () => edits.rate(asking.id, visits, period), () => {
    asking.isDraft = false;
    return { done: `Rate: ${f.rate(visits, period)} from now on.` };
  });
}

async function distribute(event) {
  event.preventDefault();
  const asking = open;
  const { submitter, target: form } = event;
  const { partner_id: partner } = state.distributions.get(open.id);
  const visits = form.elements.visits.valueAsNumber;
  const isSure = await confirm(`Store ${f.visits(visits)} now? This cannot be undone.`, `Store ${f.visits(visits)}`, "Store nothing");
  if (!isSure || open !== asking) return;
  attempt(submitter, () => edits.distribute(partner, visits), ({ added, message }) => {
    const why = message ? `: ${message}.` : ".";
    if (added === visits) return { done: `${f.visits(added)} stored${why}` };
    return { problem: `${f.count(added)} of ${f.visits(visits)} stored${why}` };
  });
}

// What a new rate would do that may not be meant; null if there is nothing of the kind.
function rateWarning(row, visits, period) {
  if (!row) return null;
  const before = Number(row.visits_per_unit) / PERIODS[row.time_period];
  const after = visits / PERIODS[period];
  const left = row.total_visits - row.distributed;
  const change = `Change the rate${before > 0 ? ` from ${f.rate(row.visits_per_unit, row.time_period)}` : ""} to ${f.rate(visits, period)}?`;
  if (after > 0 && left > 0 && left / after < 60) {
    return `${change} The remaining ${f.visits(left)} would be stored within ${left / after < 10 ? "seconds" : "a minute"}.`;
  }
  if (before > 0 && after > 10 * before) return `${change} This is ${f.count(after / before)} times the rate.`;
  return null;
}
