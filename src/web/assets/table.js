// The rows as a grid: ten thousand of them, of which only those that are seen are in the document.
import { state } from "./api.js";
import * as f from "./format.js";

const ROW_HEIGHT = 44;
const CARD_HEIGHT = 92;
const BEYOND = 6;

// Rows that need somebody first.
const ORDER = ["behind", "invalid", "draining", "paused", "active", "scheduled", "ended", "completed"];
const rank = (row) => ORDER.indexOf(row.status);
const text = new Intl.Collator("en").compare;
const late = (at) => (at == null ? Infinity : Date.parse(at));

const COLUMNS = [
  { key: "partner", name: "Partner", less: (a, b) => text(f.partner(a), f.partner(b)) },
  { key: "status", name: "Status", less: (a, b) => rank(a) - rank(b) },
  { key: "asked", name: "Asked", number: true, less: (a, b) => (a.asked ?? -1) - (b.asked ?? -1) },
  { key: "measured", name: "Measured", number: true, less: (a, b) => (a.measured ?? -1) - (b.measured ?? -1) },
  { key: "progress", name: "Progress", less: (a, b) => a.distributed / (a.total || 1) - b.distributed / (b.total || 1) },
  { key: "backlog", name: "Owed", number: true, less: (a, b) => a.backlog - b.backlog },
  { key: "end", name: "Last visit due", less: (a, b) => late(a.completes_at ?? a.end_time) - late(b.completes_at ?? b.end_time) },
];

const view = { sort: null, down: false, statuses: new Set(), words: "", cursor: 0, sorted: [], open: null, filtered: null };
const pool = [];

const byId = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 720px)");
const rowHeight = () => (narrow.matches ? CARD_HEIGHT : ROW_HEIGHT);

function element(tag, className, words) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (words != null) made.textContent = words;
  return made;
}

export function wireTable(open, filtered) {
  view.open = open;
  view.filtered = filtered;
  const head = element("div", "grid-row");
  head.setAttribute("role", "row");
  head.setAttribute("aria-rowindex", "1");
  for (const column of COLUMNS) {
    const cell = element("div", `cell ${column.key}${column.number ? " number" : ""}`);
    cell.setAttribute("role", "columnheader");
    const button = element("button", "sort", column.name);
    button.type = "button";
    button.addEventListener("click", () => sortBy(column.key));
    cell.append(button);
    head.append(cell);
  }
  byId("grid-head").append(head);
  byId("grid").addEventListener("scroll", draw, { passive: true });
  byId("rows-search").addEventListener("input", (event) => {
    view.words = event.target.value.trim().toLowerCase();
    narrowed();
  });
  byId("grid").addEventListener("keydown", onKey);
  narrow.addEventListener("change", drawTable);
  addEventListener("resize", draw);
  sortBy("status");
}

function sortBy(key) {
  // Of numbers the largest are looked for.
  const numbers = COLUMNS.find((column) => column.key === key)?.number ?? false;
  view.down = view.sort === key ? !view.down : numbers;
  view.sort = key;
  const cells = byId("grid-head").querySelectorAll("[role=columnheader]");
  COLUMNS.forEach((column, n) => {
    const sorted = column.key === view.sort;
    cells[n].setAttribute("aria-sort", sorted ? (view.down ? "descending" : "ascending") : "none");
  });
  drawTable();
}

function onKey(event) {
  if (event.target.closest("button")) return;
  const page = Math.max(1, Math.floor(seenHeight() / rowHeight()) - 1);
  const to = {
    ArrowDown: view.cursor + 1,
    ArrowUp: view.cursor - 1,
    PageDown: view.cursor + page,
    PageUp: view.cursor - page,
    Home: 0,
    End: view.sorted.length - 1,
  }[event.key];
  if (to != null) {
    event.preventDefault();
    view.cursor = Math.max(0, Math.min(view.sorted.length - 1, to));
    reveal();
    draw();
  } else if (event.key === "Enter" && view.sorted[view.cursor]) {
    view.open(view.sorted[view.cursor].id);
  }
}

// The head stays on top of what is scrolled.
const seenHeight = () => (byId("grid").clientHeight || 800) - byId("grid-head").offsetHeight;

function reveal() {
  const grid = byId("grid");
  const top = view.cursor * rowHeight();
  if (top < grid.scrollTop) grid.scrollTop = top;
  const bottom = top + rowHeight() - seenHeight();
  if (bottom > grid.scrollTop) grid.scrollTop = bottom;
}

// Back to where somebody came from.
export function focusTable(id) {
  const at = view.sorted.findIndex((row) => row.id === id);
  if (at >= 0) view.cursor = at;
  byId("grid").focus({ preventScroll: true });
  draw();
}

function narrowed() {
  view.cursor = 0;
  view.filtered();
  drawTable();
}

// Which rows are shown, as a query of the address; empty for all of them.
export function filter() {
  const query = new URLSearchParams();
  if (view.statuses.size) query.set("status", [...view.statuses].join());
  if (view.words) query.set("q", view.words);
  const words = String(query).replaceAll("%2C", ",");
  return words && `?${words}`;
}

export function setFilter(text) {
  const query = new URLSearchParams(text);
  const statuses = (query.get("status") ?? "").split(",").filter((status) => ORDER.includes(status));
  const words = (query.get("q") ?? "").trim().toLowerCase();
  const search = byId("rows-search");
  if (search.value.trim().toLowerCase() !== words) search.value = words;
  view.statuses = new Set(statuses);
  view.words = words;
}

function matches(row) {
  if (view.statuses.size && !view.statuses.has(row.status)) return false;
  if (!view.words) return true;
  return f.partner(row).toLowerCase().includes(view.words) || row.id.includes(view.words)
    || (row.partner_id ?? "").includes(view.words) || row.status.includes(view.words)
    || (f.reason(row, state.head?.paused) ?? "").toLowerCase().includes(view.words);
}

export function drawTable() {
  const column = COLUMNS.find((c) => c.key === view.sort) ?? COLUMNS[1];
  const sign = view.down ? -1 : 1;
  const cursorId = view.sorted[view.cursor]?.id;
  view.sorted = [...state.rows.values()].filter(matches);
  view.sorted.sort((a, b) => sign * column.less(a, b) || text(f.partner(a), f.partner(b)) || (a.id < b.id ? -1 : 1));
  const kept = view.sorted.findIndex((row) => row.id === cursorId);
  view.cursor = kept >= 0 ? kept : Math.max(0, Math.min(view.cursor, view.sorted.length - 1));
  drawChips();
  const all = state.rows.size;
  const known = Math.max(all, state.head?.totals.rows ?? 0);
  byId("rows-count").textContent = view.sorted.length === known ? f.count(known) : `${f.count(view.sorted.length)} of ${f.count(known)}`;
  byId("grid").setAttribute("aria-rowcount", String(view.sorted.length + 1));
  byId("grid-space").style.height = `${view.sorted.length * rowHeight()}px`;
  const empty = byId("grid-empty");
  empty.hidden = view.sorted.length > 0;
  byId("grid").hidden = all === 0;
  empty.textContent = all === 0
    ? (state.head == null ? "Asking the agent…" : "There are no rows in visit_distribution. Insert one in Studio or with psql, and it appears here.")
    : "No row is like that. Clear the search, or choose other statuses.";
  draw();
}

function drawChips() {
  const counts = new Map();
  for (const row of state.rows.values()) counts.set(row.status, (counts.get(row.status) ?? 0) + 1);
  const chips = byId("chips");
  const shown = ORDER.filter((status) => counts.has(status) || view.statuses.has(status));
  const stopped = state.head?.paused;
  const signature = `${shown} ${stopped}`;
  if (chips.dataset.of !== signature) {
    chips.dataset.of = signature;
    chips.replaceChildren(...shown.map((status) => chip(status, f.look(status, stopped))));
  }
  for (const button of chips.children) {
    const status = button.dataset.status;
    button.lastChild.textContent = f.count(counts.get(status) ?? 0);
    button.setAttribute("aria-pressed", String(view.statuses.has(status)));
  }
}

function chip(status, look) {
  const button = element("button", `chip ${look.tone}`);
  button.type = "button";
  button.dataset.status = status;
  button.title = look.words;
  const shape = element("span", "shape", look.shape);
  shape.setAttribute("aria-hidden", "true");
  button.append(shape, ` ${status} `, element("span", "count", ""));
  button.addEventListener("click", () => {
    if (!view.statuses.delete(status)) view.statuses.add(status);
    narrowed();
  });
  return button;
}

// One row of the document, used for whichever row is seen in its place.
function line() {
  const row = element("div", "grid-row body");
  row.setAttribute("role", "row");
  const cells = {};
  for (const column of COLUMNS) {
    const cell = element("div", `cell ${column.key}${column.number ? " number" : ""}`);
    cell.setAttribute("role", "gridcell");
    cells[column.key] = cell;
    row.append(cell);
  }
  const name = element("span", "name");
  const id = element("span", "id");
  cells.partner.append(name, id);
  const status = element("span", "status");
  const shape = element("span", "shape");
  shape.setAttribute("aria-hidden", "true");
  const word = element("span", "word");
  const why = element("span", "why");
  status.append(shape, word);
  cells.status.append(status, why);
  const bar = element("span", "bar-track");
  const fill = element("span", "bar-fill");
  const mark = element("span", "bar-due");
  bar.append(fill, mark);
  const progress = element("span", "progress-words");
  cells.progress.append(bar, progress);
  row.addEventListener("click", () => view.open(row.dataset.id));
  return { row, cells, name, id, status, shape, word, why, fill, mark, progress };
}

function put(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function fillLine(line, row, at) {
  const stopped = state.head?.paused;
  const status = f.look(row.status, stopped);
  const why = f.reason(row, stopped) ?? "";
  line.row.dataset.id = row.id;
  line.row.setAttribute("aria-rowindex", String(at + 2));
  line.row.classList.toggle("cursor", at === view.cursor);
  line.row.id = `row-${at}`;
  put(line.name, f.partner(row));
  put(line.id, row.id.slice(0, 8));
  line.status.className = `status ${status.tone}`;
  put(line.shape, status.shape);
  put(line.word, row.status);
  put(line.why, why);
  if (line.why.title !== why) line.why.title = why;
  put(line.cells.asked, f.pace(row));
  put(line.cells.measured, f.measured(row));
  const whole = Math.max(1, row.total);
  line.fill.style.width = `${Math.min(100, (100 * row.distributed) / whole)}%`;
  line.mark.style.left = `${Math.min(100, (100 * row.due) / whole)}%`;
  put(line.progress, `${f.count(row.distributed)} of ${f.count(row.total)} · ${f.percent(row.distributed, row.total)}`);
  put(line.cells.backlog, f.count(row.backlog));
  line.cells.backlog.classList.toggle("owed", row.status === "behind" || row.status === "draining");
  const ending = end(row);
  put(line.cells.end, ending);
  if (line.cells.end.title !== ending) line.cells.end.title = ending;
}

function end(row) {
  if (["completed", "ended"].includes(row.status)) return row.status === "completed" ? "done" : "over";
  if (row.status === "paused" || row.status === "invalid") return "–";
  const now = state.head?.now;
  if (row.status === "scheduled") return row.start_time ? `begins ${f.relative(row.start_time, now)}` : "never";
  if (row.completes_at && (!row.end_time || late(row.completes_at) <= late(row.end_time))) return f.relative(row.completes_at, now);
  return row.end_time ? `window ends ${f.relative(row.end_time, now)}` : "never";
}

function draw() {
  const height = rowHeight();
  const first = Math.max(0, Math.floor(byId("grid").scrollTop / height) - BEYOND);
  const room = Math.ceil(seenHeight() / height) + 2 * BEYOND;
  const last = Math.min(view.sorted.length, first + room);
  while (pool.length < last - first) {
    const made = line();
    pool.push(made);
    byId("grid-space").append(made.row);
  }
  pool.forEach((made, n) => {
    const at = first + n;
    const seen = at < last;
    made.row.hidden = !seen;
    if (!seen) {
      made.row.removeAttribute("id");
      return;
    }
    made.row.style.transform = `translateY(${at * height}px)`;
    fillLine(made, view.sorted[at], at);
  });
  const grid = byId("grid");
  const drawn = view.cursor >= first && view.cursor < last;
  if (drawn) grid.setAttribute("aria-activedescendant", `row-${view.cursor}`);
  else grid.removeAttribute("aria-activedescendant");
}
