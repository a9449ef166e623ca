// What the agent tells, kept as state: one stream of events, and edits as requests.
//
// `subscribe` calls back at most once a frame, with what changed: {head, rows, row, lost}.

export const state = {
  head: null,
  rows: new Map(),
  // Of the row that is open: its seconds by time.
  seconds: new Map(),
  openRow: null,
  lostSince: null,
};

// A stream that said nothing for so long is dead; the agent says something each second.
const SILENT_AFTER = 8000;
const SECONDS_KEPT = 120;
// A request that was not answered for so long is given up.
const ANSWER_WITHIN = 16000;

const listeners = new Set();
let changed = {};
let planned = false;
let source = null;
let heardAt = 0;

export function subscribe(listener) {
  listeners.add(listener);
}

function tell(what) {
  Object.assign(changed, what);
  if (planned) return;
  planned = true;
  const deliver = () => {
    planned = false;
    const now = changed;
    changed = {};
    for (const listener of listeners) listener(now);
  };
  // A page in the background is not painted, but kept right.
  if (document.hidden) setTimeout(deliver, 0);
  else requestAnimationFrame(deliver);
}

function heard() {
  heardAt = Date.now();
  if (state.lostSince != null) {
    state.lostSince = null;
    tell({ lost: true });
  }
}

function onBoard(event) {
  const board = JSON.parse(event.data);
  state.rows = new Map(board.rows.map((row) => [row.id, row]));
  delete board.rows;
  state.head = board;
  heard();
  tell({ head: true, rows: true });
}

function onHead(event) {
  state.head = JSON.parse(event.data);
  heard();
  tell({ head: true });
}

function onRows(event) {
  const { changed: rows, removed } = JSON.parse(event.data);
  for (const row of rows) {
    const known = state.rows.get(row.id);
    // A part of a row is a change of one that is known.
    if (known) Object.assign(known, row);
    else if ("total" in row) state.rows.set(row.id, row);
  }
  for (const id of removed) state.rows.delete(id);
  if (rows.length || removed.length) tell({ rows: true });
}

function onSeconds(event) {
  const { id, seconds } = JSON.parse(event.data);
  if (id !== state.openRow) return;
  keepSeconds(seconds);
  tell({ row: true });
}

export function keepSeconds(seconds) {
  for (const second of seconds) state.seconds.set(Date.parse(second.at) / 1000, second);
  const times = [...state.seconds.keys()].sort((a, b) => a - b);
  for (const old of times.slice(0, -SECONDS_KEPT)) state.seconds.delete(old);
}

// Opens the stream; with the seconds of a row where one is open.
export function listen(row = null) {
  source?.close();
  state.openRow = row;
  state.seconds.clear();
  source = new EventSource(row ? `/api/events?row=${row}` : "/api/events");
  source.addEventListener("board", onBoard);
  source.addEventListener("head", onHead);
  source.addEventListener("rows", onRows);
  source.addEventListener("row", onSeconds);
  heardAt = Date.now();
}

function watch() {
  if (Date.now() - heardAt > SILENT_AFTER) {
    if (state.lostSince == null) {
      state.lostSince = heardAt;
      tell({ lost: true });
    }
    checkLogin();
    listen(state.openRow);
  }
}

// An EventSource does not say why it fails.
async function checkLogin() {
  const answer = await fetch("/api/board", { method: "HEAD", signal: AbortSignal.timeout(5000) }).catch(() => null);
  if (answer?.status === 401) location.assign("/login");
}

export function start(row) {
  listen(row);
  setInterval(watch, 1000);
}

async function answerOf(promise) {
  const response = await promise.catch(() => null);
  if (!response) throw new Error("The agent does not answer. Is it running?");
  if (response.status === 401) location.assign("/login");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `The agent answered ${response.status}.`);
  return body;
}

export const rowFromNear = (id) => answerOf(fetch(`/api/rows/${id}`, { signal: AbortSignal.timeout(ANSWER_WITHIN) }));

const post = (path, body = {}) =>
  answerOf(fetch(path, {
    method: "POST",
    signal: AbortSignal.timeout(ANSWER_WITHIN),
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }));

export const edits = {
  pause: (id) => post(`/api/rows/${id}/pause`),
  resume: (id) => post(`/api/rows/${id}/resume`),
  rate: (id, visits_per_unit, time_period) => post(`/api/rows/${id}/rate`, { visits_per_unit, time_period }),
  distribute: (partner, visits) => post(`/api/partners/${partner}/distribute`, { visits }),
  pauseAll: () => post("/api/pause"),
  resumeAll: () => post("/api/resume"),
};
