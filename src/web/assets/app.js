// The page: which view is shown, and who redraws when something changed.
import { state, start, listen, subscribe } from "./api.js";
import { applyTheme, switchTheme } from "./theme.js";
import { drawHead, drawHealth, wireHead } from "./head.js";
import { drawTable, wireTable, focusTable, filter, setFilter } from "./table.js";
import { openRow, closeRow, drawRow, redrawCharts } from "./row.js";

const byId = (id) => document.getElementById(id);

// The address says what is seen, so that it can be shared: "#/rows/ID?status=behind,invalid&q=acme".
function place() {
  const [path, query = ""] = location.hash.split("?");
  const [, view, id] = path.match(/^#\/(rows|health)(?:\/([0-9a-f-]{36}))?$/) ?? [];
  return { view: view === "health" ? "health" : "rows", row: view === "rows" ? id ?? null : null, query };
}

const address = (row) => `#/${row ? `rows/${row}` : ""}${filter()}`;

function keepFilter() {
  history.replaceState(null, "", address(shown.row));
  byId("nav-rows").setAttribute("href", address(null));
}

let shown = { view: "rows", row: null };

function show() {
  const next = place();
  byId("view-rows").hidden = next.view !== "rows";
  byId("view-health").hidden = next.view !== "health";
  if (next.view === "rows") {
    setFilter(next.query);
    byId("nav-rows").setAttribute("href", address(null));
  }
  for (const view of ["rows", "health"]) {
    if (view === next.view) byId(`nav-${view}`).setAttribute("aria-current", "page");
    else byId(`nav-${view}`).removeAttribute("aria-current");
  }
  if (next.row !== shown.row) {
    listen(next.row);
    if (next.row) openRow(next.row, leaveRow);
    else closeRow();
  }
  if (shown.row && !next.row) focusTable(shown.row);
  shown = next;
  draw({ head: true, rows: true, row: true });
}

function leaveRow() {
  location.hash = address(null);
}

function draw(changed) {
  document.body.classList.toggle("is-lost", state.lostSince != null);
  if (changed.lost || changed.head) drawHead();
  if (changed.head && shown.view === "health") drawHealth();
  if ((changed.rows || changed.head) && shown.view === "rows") drawTable();
  if (shown.row && (changed.rows || changed.row || changed.head)) drawRow(changed);
}

applyTheme();
wireHead();
wireTable((id) => { location.hash = address(id); }, keepFilter);
byId("theme").addEventListener("click", () => { switchTheme(); redrawCharts(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { applyTheme(); redrawCharts(); });
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && shown.row) leaveRow();
  if (event.key === "/" && !typing && shown.view === "rows") {
    event.preventDefault();
    byId("rows-search").focus();
  }
});
subscribe(draw);
shown = { view: "rows", row: null };
start(null);
show();
