// The distributions as a grid: of ten thousand, only the visible ones are in the document.
import { state } from "./api.js";
import { byId, element, setText } from "./dom.js";
import * as f from "./format.js";

const ROW_HEIGHT = 44;
const CARD_HEIGHT = 92;
const OVERSCAN = 6;

const compare = new Intl.Collator("en").compare;
const timestamp = (at) => (at == null ? Infinity : Date.parse(at));
const share = (row) => row.distributed / (row.total_visits || 1);

const COLUMNS = [
  { key: "partner", name: "Partner", compare: (a, b) => compare(f.partner(a), f.partner(b)) },
  { key: "status", name: "Status", compare: (a, b) => f.ORDER.indexOf(a.status) - f.ORDER.indexOf(b.status) },
  { key: "target", name: "Target", number: true, compare: (a, b) => (a.target_per_second ?? -1) - (b.target_per_second ?? -1) },
  { key: "actual", name: "Actual", number: true, compare: (a, b) => (a.actual_per_second ?? -1) - (b.actual_per_second ?? -1) },
  { key: "progress", name: "Progress", compare: (a, b) => share(a) - share(b) },
  { key: "backlog", name: "Backlog", number: true, compare: (a, b) => a.backlog - b.backlog },
  { key: "end", name: "Ends", compare: (a, b) => timestamp(a.completes_at ?? a.end_time) - timestamp(b.completes_at ?? b.end_time) },
];

const view = { sort: null, isDescending: false, statuses: new Set(), words: "", cursor: 0, sorted: [], open: null, onFilter: null };
const pool = [];

const narrow = matchMedia("(max-width: 720px)");
const rowHeight = () => (narrow.matches ? CARD_HEIGHT : ROW_HEIGHT);

function withRole(role, node) {
  node.setAttribute("role", role);
  return node;
}

const cell = (column, role, ...content) =>
  withRole(role, element("div", `cell ${column.key}${column.number ? " number" : ""}`, ...content));

export function initTable(open, onFilter) {
  view.open = open;
  view.onFilter = onFilter;
  const head = withRole("row", element("div", "grid-row", ...COLUMNS.map((column) => {
    const button = element("button", "sort", column.name);
    button.type = "button";
    button.addEventListener("click", () => sortBy(column));
    return cell(column, "columnheader", button);
  })));
  head.setAttribute("aria-rowindex", "1");
  byId("grid-head").append(head);
  byId("grid").addEventListener("scroll", draw, { passive: true });
  byId("search").addEventListener("input", (event) => {
    view.words = event.target.value.trim().toLowerCase();
    filtered();
  });
  byId("grid").addEventListener("keydown", onKey);
  narrow.addEventListener("change", drawTable);
  addEventListener("resize", draw);
  sortBy(COLUMNS[1]);
}

function sortBy(column) {
  // The largest numbers matter most.
  view.isDescending = view.sort === column ? !view.isDescending : column.number ?? false;
  view.sort = column;
  const cells = byId("grid-head").querySelectorAll("[role=columnheader]");
  COLUMNS.forEach((other, n) => {
    const order = view.isDescending ? "descending" : "ascending";
    cells[n].setAttribute("aria-sort", other === column ? order : "none");
  });
  drawTable();
}

function onKey(event) {
  if (event.target.closest("button")) return;
  const page = Math.max(1, Math.floor(bodyHeight() / rowHeight()) - 1);
  const last = view.sorted.length - 1;
  const to = {
    ArrowDown: view.cursor + 1,
    ArrowUp: view.cursor - 1,
    PageDown: view.cursor + page,
    PageUp: view.cursor - page,
    Home: 0,
    End: last,
  }[event.key];
  if (to != null) {
    event.preventDefault();
    view.cursor = Math.max(0, Math.min(last, to));
    reveal();
    draw();
  } else if (event.key === "Enter" && view.sorted[view.cursor]) {
    view.open(view.sorted[view.cursor].id);
  }
}

// The head is sticky: it covers a part of the grid.
const bodyHeight = () => (byId("grid").clientHeight || 800) - byId("grid-head").offsetHeight;

function reveal() {
  const grid = byId("grid");
  const top = view.cursor * rowHeight();
  if (top < grid.scrollTop) grid.scrollTop = top;
  const bottom = top + rowHeight() - bodyHeight();
  if (bottom > grid.scrollTop) grid.scrollTop = bottom;
}

// Returns the focus to the row that was opened.
export function focusTable(id) {
  const at = view.sorted.findIndex((row) => row.id === id);
  if (at >= 0) view.cursor = at;
  byId("grid").focus({ preventScroll: true });
  draw();
}

function filtered() {
  view.cursor = 0;
  view.onFilter();
  drawTable();
}

// The filter as a query of the address; empty without one.
export function filter() {
  const query = new URLSearchParams();
  if (view.statuses.size) query.set("status", [...view.statuses].join());
  if (view.words) query.set("q", view.words);
  const text = String(query).replaceAll("%2C", ",");
  return text && `?${text}`;
}

export function setFilter(text) {
  const query = new URLSearchParams(text);
  view.statuses = new Set((query.get("status") ?? "").split(",").filter((status) => f.ORDER.includes(status)));
  view.words = (query.get("q") ?? "").trim().toLowerCase();
  const search = byId("search");
  if (search.value.trim().toLowerCase() !== view.words) search.value = view.words;
}

function matches(row) {
  if (view.statuses.size && !view.statuses.has(row.status)) return false;
  const texts = [f.partner(row), row.id, row.partner_id, row.status, row.reason];
  return texts.some((text) => text?.toLowerCase().includes(view.words));
}

export function drawTable() {
  const sign = view.isDescending ? -1 : 1;
  const cursorId = view.sorted[view.cursor]?.id;
  const order = view.sort.compare;
  view.sorted = [...state.distributions.values()].filter(matches);
  view.sorted.sort((a, b) => sign * order(a, b) || COLUMNS[0].compare(a, b) || (a.id < b.id ? -1 : 1));
  const kept = view.sorted.findIndex((row) => row.id === cursorId);
  view.cursor = kept >= 0 ? kept : Math.max(0, Math.min(view.cursor, view.sorted.length - 1));
  drawChips();
  const all = state.distributions.size;
  const known = Math.max(all, state.overview?.totals.distributions ?? 0);
  const found = view.sorted.length;
  setText(byId("count"), found === known ? f.count(known) : `${f.count(found)} of ${f.count(known)}`);
  byId("grid").setAttribute("aria-rowcount", String(found + 1));
  byId("grid-space").style.height = `${found * rowHeight()}px`;
  byId("grid").hidden = all === 0;
  byId("grid-empty").hidden = found > 0;
  setText(byId("grid-empty"), emptyText(all));
  draw();
}

function emptyText(all) {
  if (all > 0) return "No match. Clear the search or the status filter.";
  return state.overview ? "No distributions yet. Insert a row into visit_distribution." : "Loading…";
}

function drawChips() {
  const counts = new Map();
  for (const { status } of state.distributions.values()) counts.set(status, (counts.get(status) ?? 0) + 1);
  const chips = byId("chips");
  const shown = f.ORDER.filter((status) => counts.has(status) || view.statuses.has(status));
  const paused = state.overview?.paused;
  const signature = `${shown} ${paused}`;
  if (chips.dataset.of !== signature) {
    chips.dataset.of = signature;
    chips.replaceChildren(...shown.map((name) => chip(name, f.status(name, paused))));
  }
  for (const button of chips.children) {
    const { status } = button.dataset;
    setText(button.lastChild, f.count(counts.get(status) ?? 0));
    button.setAttribute("aria-pressed", String(view.statuses.has(status)));
  }
}

function shapeOf(text = "") {
  const shape = element("span", "shape", text);
  shape.setAttribute("aria-hidden", "true");
  return shape;
}

function chip(name, status) {
  const button = element("button", `chip ${status.tone}`, shapeOf(status.shape), ` ${name} `, element("span", "count"));
  button.type = "button";
  button.dataset.status = name;
  button.title = status.meaning;
  button.addEventListener("click", () => {
    if (!view.statuses.delete(name)) view.statuses.add(name);
    filtered();
  });
  return button;
}

// A row of the document: filled with whichever distribution is visible at its place.
function createLine() {
  const cells = Object.fromEntries(COLUMNS.map((column) => [column.key, cell(column, "gridcell")]));
  const parts = {
    name: element("span", "name"), id: element("span", "id"),
    shape: shapeOf(), word: element("span", "word"), reason: element("span", "reason"),
    fill: element("span", "bar-fill"), due: element("span", "bar-due"), progress: element("span", "progress-text"),
  };
  const status = element("span", "status", parts.shape, parts.word);
  cells.partner.append(parts.name, parts.id);
  cells.status.append(status, parts.reason);
  cells.progress.append(element("span", "bar-track", parts.fill, parts.due), parts.progress);
  const row = withRole("row", element("div", "grid-row body", ...Object.values(cells)));
  row.addEventListener("click", () => view.open(row.dataset.id));
  return { row, cells, status, ...parts };
}

function setTitled(node, text) {
  setText(node, text);
  if (node.title !== text) node.title = text;
}

function fillLine(line, row, at) {
  const status = f.status(row.status, state.overview?.paused);
  line.row.dataset.id = row.id;
  line.row.id = `row-${at}`;
  line.row.setAttribute("aria-rowindex", String(at + 2));
  line.row.classList.toggle("cursor", at === view.cursor);
  setText(line.name, f.partner(row));
  setText(line.id, row.id.slice(0, 8));
  line.status.className = `status ${status.tone}`;
  setText(line.shape, status.shape);
  setText(line.word, row.status);
  setTitled(line.reason, row.reason ?? "");
  setText(line.cells.target, f.target(row));
  setText(line.cells.actual, f.actual(row));
  const percentOf = (count) => `${Math.min(100, (100 * count) / Math.max(1, row.total_visits))}%`;
  line.fill.style.width = percentOf(row.distributed);
  line.due.style.left = percentOf(row.due);
  setText(line.progress, `${f.count(row.distributed)} of ${f.count(row.total_visits)} · ${f.percent(row.distributed, row.total_visits)}`);
  setText(line.cells.backlog, f.count(row.backlog));
  line.cells.backlog.classList.toggle("is-behind", row.status === "behind" || row.status === "draining");
  setTitled(line.cells.end, end(row));
}

function end({ status, start_time: start, end_time: windowEnd, completes_at: completion }) {
  const now = state.overview?.now;
  if (status === "completed" || status === "ended") return status;
  if (status === "paused" || status === "invalid") return f.NONE;
  if (status === "scheduled") return start ? `starts ${f.relative(start, now)}` : "never";
  if (completion && timestamp(completion) <= timestamp(windowEnd)) return f.relative(completion, now);
  return windowEnd ? f.relative(windowEnd, now) : "never";
}

function draw() {
  const height = rowHeight();
  const first = Math.max(0, Math.floor(byId("grid").scrollTop / height) - OVERSCAN);
  const room = Math.ceil(bodyHeight() / height) + 2 * OVERSCAN;
  const last = Math.min(view.sorted.length, first + room);
  while (pool.length < last - first) {
    const line = createLine();
    pool.push(line);
    byId("grid-space").append(line.row);
  }
  pool.forEach((line, n) => {
    const at = first + n;
    line.row.hidden = at >= last;
    if (line.row.hidden) {
      line.row.removeAttribute("id");
      return;
    }
    line.row.style.transform = `translateY(${at * height}px)`;
    fillLine(line, view.sorted[at], at);
  });
  const isDrawn = view.cursor >= first && view.cursor < last;
  if (isDrawn) byId("grid").setAttribute("aria-activedescendant", `row-${view.cursor}`);
  else byId("grid").removeAttribute("aria-activedescendant");
}
