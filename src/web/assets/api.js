// The agent's state: one stream of events, and edits as requests.
//
// `subscribe` calls back at most once a frame, with what changed: {overview, distributions, seconds, connection}.

export const state = {
  overview: null,
  distributions: new Map(),
  selected: null,
  // Of the selected distribution, by time.
  seconds: new Map(),
  disconnectedSince: null,
};

// The agent sends something each second; a stream that was silent for this long is dead.
const SILENCE_MS = 8000;
const ANSWER_MS = 16000;
const SECONDS_KEPT = 120;

const listeners = new Set();
let changed = {};
let isPlanned = false;
let source = null;
let receivedAt = 0;

export function subscribe(listener) {
  listeners.add(listener);
}

function notify(what) {
  Object.assign(changed, what);
  if (isPlanned) return;
  isPlanned = true;
  const deliver = () => {
    isPlanned = false;
    const now = changed;
    changed = {};
    for (const listener of listeners) listener(now);
  };
  // A page in the background gets no animation frames, and is kept up to date all the same.
  if (document.hidden) setTimeout(deliver, 0);
  else requestAnimationFrame(deliver);
}

function received() {
  receivedAt = Date.now();
  if (state.disconnectedSince != null) {
    state.disconnectedSince = null;
    notify({ connection: true });
  }
}

function onSnapshot({ distributions, ...overview }) {
  state.distributions = new Map(distributions.map((row) => [row.id, row]));
  state.overview = overview;
  received();
  notify({ overview: true, distributions: true });
}

function onOverview(overview) {
  state.overview = overview;
  received();
  notify({ overview: true });
}

function onDistributions({ changed: rows, removed }) {
  for (const row of rows) {
    const known = state.distributions.get(row.id);
    // What is sent in part is known already.
    if (known) Object.assign(known, row);
    else if ("total_visits" in row) state.distributions.set(row.id, row);
  }
  for (const id of removed) state.distributions.delete(id);
  if (rows.length || removed.length) notify({ distributions: true });
}

function onSeconds({ id, seconds }) {
  if (id !== state.selected) return;
  keepSeconds(seconds);
  notify({ seconds: true });
}

export function keepSeconds(seconds) {
  for (const second of seconds) state.seconds.set(Date.parse(second.at) / 1000, second);
  const times = [...state.seconds.keys()].sort((a, b) => a - b);
  for (const old of times.slice(0, -SECONDS_KEPT)) state.seconds.delete(old);
}

// Opens the stream, with the seconds of the selected distribution.
export function listen(selected = null) {
  source?.close();
  state.selected = selected;
  state.seconds.clear();
  source = new EventSource(selected ? `/api/events?distribution=${selected}` : "/api/events");
  const handlers = { snapshot: onSnapshot, overview: onOverview, distributions: onDistributions, seconds: onSeconds };
  for (const [name, handler] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
  }
  receivedAt = Date.now();
}

function watch() {
  if (Date.now() - receivedAt <= SILENCE_MS) return;
  if (state.disconnectedSince == null) {
    state.disconnectedSince = receivedAt;
    notify({ connection: true });
  }
  checkLogin();
  listen(state.selected);
}

// An EventSource doesn't say why it failed.
async function checkLogin() {
  const answer = await fetch("/api/snapshot", { method: "HEAD", signal: AbortSignal.timeout(5000) }).catch(() => null);
  if (answer?.status === 401) location.assign("/login");
}

export function start(selected) {
  listen(selected);
  setInterval(watch, 1000);
}

async function request(path, options = {}) {
  const response = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), ...options }).catch(() => null);
  if (!response) throw new Error("No answer from the agent. Is it running?");
  if (response.status === 401) location.assign("/login");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `The agent answered ${response.status}.`);
  return body;
}

export const readDetail = (id) => request(`/api/distributions/${id}`);

const post = (path, body = {}) =>
  request(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const edits = {
  pause: (id) => post(`/api/distributions/${id}/pause`),
  resume: (id) => post(`/api/distributions/${id}/resume`),
  rate: (id, visits_per_unit, time_period) => post(`/api/distributions/${id}/rate`, { visits_per_unit, time_period }),
  distribute: (partner, visits) => post(`/api/partners/${partner}/distribute`, { visits }),
  pauseAll: () => post("/api/pause"),
  resumeAll: () => post("/api/resume"),
};
