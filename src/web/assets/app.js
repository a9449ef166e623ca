// The page: which view is shown, and what is drawn again after a change.
import { state, start, listen, subscribe } from "./api.js";
import { byId, isAsking } from "./dom.js";
import { applyTheme, switchTheme } from "./theme.js";
import { drawOverview, drawHealth, initOverview } from "./overview.js";
import { drawTable, initTable, focusTable, filter, setFilter } from "./table.js";
import { openDetail, closeDetail, drawDetail, redrawCharts } from "./detail.js";

const VIEWS = ["distributions", "health"];

// The address holds the view, so that it can be shared: "#/distributions/ID?status=behind,invalid&q=acme".
function route() {
  const [path, query = ""] = location.hash.split("?");
  const [, view = "distributions", id = null] = path.match(/^#\/(distributions|health)(?:\/([0-9a-f-]{36}))?$/) ?? [];
  return { view, id: view === "distributions" ? id : null, query };
}

const address = (id) => `#/${id ? `distributions/${id}` : ""}${filter()}`;

function keepFilter() {
  history.replaceState(null, "", address(shown.id));
  byId("nav-distributions").setAttribute("href", address(null));
}

let shown = { view: "distributions", id: null };

function show() {
  const next = route();
  if (next.view === "distributions") {
    setFilter(next.query);
    byId("nav-distributions").setAttribute("href", address(null));
  }
  for (const view of VIEWS) {
    byId(`view-${view}`).hidden = view !== next.view;
    if (view === next.view) byId(`nav-${view}`).setAttribute("aria-current", "page");
    else byId(`nav-${view}`).removeAttribute("aria-current");
  }
  if (next.id !== shown.id) {
    listen(next.id);
    if (next.id) openDetail(next.id, leaveDetail);
    else closeDetail();
  }
  if (shown.id && !next.id) focusTable(shown.id);
  shown = next;
  draw({ overview: true, distributions: true, seconds: true });
}

function leaveDetail() {
  location.hash = address(null);
}

function draw(changed) {
  document.body.classList.toggle("is-disconnected", state.disconnectedSince != null);
  if (changed.connection || changed.overview) drawOverview();
  if (changed.overview && shown.view === "health") drawHealth();
  if ((changed.distributions || changed.overview) && shown.view === "distributions") drawTable();
  if (shown.id && (changed.distributions || changed.seconds || changed.overview)) drawDetail(changed);
}

applyTheme();
initOverview();
initTable((id) => { location.hash = address(id); }, keepFilter);
byId("theme").addEventListener("click", () => { switchTheme(); redrawCharts(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { applyTheme(); redrawCharts(); });
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  if (isAsking()) return;
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && shown.id) leaveDetail();
  if (event.key === "/" && !isTyping && shown.view === "distributions") {
    event.preventDefault();
    byId("search").focus();
  }
});
subscribe(draw);
start(null);
show();
