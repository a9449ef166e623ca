// Numbers, paces and times as people read them. Pure.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 9 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dated = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
});

export const NONE = "–";
export const SECONDS = { second: 1, minute: 60, hour: 3600, day: 86400 };

export const count = (n) => (n == null ? NONE : whole.format(n));

export const number = (n) => exact.format(n);

export const visits = (n) => `${count(n)} ${n === 1 ? "visit" : "visits"}`;

export const percent = (part, all) =>
  all > 0 ? `${Math.floor((100 * part) / all)} %` : NONE;

// "33.33 / minute"
export const pace = (row) =>
  row.visits_per_unit == null ? NONE : `${row.visits_per_unit} / ${row.time_period ?? "?"}`;

// "7.5 a second"
export const rate = (visits, period) => `${number(visits)} ${period === "hour" ? "an" : "a"} ${period}`;

// What was measured, in the unit that the row asks in.
export function measured(row) {
  if (row.measured == null || !(row.time_period in SECONDS) || ["paused", "invalid"].includes(row.status)) return NONE;
  return three.format(row.measured * SECONDS[row.time_period]);
}

export const perSecond = (n) => (n == null ? NONE : three.format(n));

export function seconds(s) {
  if (s == null) return NONE;
  if (s < 0.001) return "< 1 ms";
  if (s < 1) return `${three.format(1000 * s)} ms`;
  if (s < 120) return `${three.format(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export const time = (at) => (at == null ? NONE : clock.format(new Date(at)));
export const moment = (at) => (at == null ? NONE : dated.format(new Date(at)));

// "in 3 h", "4 min ago"
export function relative(at, now) {
  if (at == null || now == null) return NONE;
  const ahead = (Date.parse(at) - Date.parse(now)) / 1000;
  if (Math.abs(ahead) < 1) return "now";
  return ahead > 0 ? `in ${seconds(ahead)}` : `${seconds(-ahead)} ago`;
}

// Who the row is for, and short.
export const partner = (row) => row.partner ?? (row.partner_id ? row.partner_id.slice(0, 8) : "no partner");

// Each status: its shape (not colour alone), and what it means.
export const STATUS = {
  behind: { shape: "▼", tone: "bad", words: "more than a second's worth behind its curve" },
  invalid: { shape: "✖", tone: "bad", words: "cannot be paced, or its inserts fail" },
  draining: { shape: "◢", tone: "warn", words: "window over, what was due in it is still being stored" },
  active: { shape: "●", tone: "good", words: "on its curve" },
  scheduled: { shape: "◷", tone: "calm", words: "starts later" },
  paused: { shape: "❙❙", tone: "warn", words: "is_active is false" },
  ended: { shape: "■", tone: "calm", words: "window over, short of the total" },
  completed: { shape: "✓", tone: "calm", words: "at its total" },
};

const STOPPED = { shape: "❙❙", tone: "warn", words: "on its curve, but everything is paused" };

// How a status looks, while everything is paused or not.
export const look = (status, stopped) =>
  stopped && status === "active" ? STOPPED : STATUS[status] ?? { shape: "•", tone: "calm", words: "" };

export const reason = (row, stopped) =>
  row.reason ?? (stopped && row.status === "active" ? "Everything is paused. Resume everything to go on." : null);
