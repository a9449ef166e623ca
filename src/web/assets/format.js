// Numbers, rates, times and statuses as text. Pure.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 9 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const times = (options) => new Intl.DateTimeFormat("en-GB", { timeZoneName: "short", ...options });
const toSecond = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const toMinute = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
const clock = times(toSecond);
const dated = times(toMinute);
const precise = times({ ...toMinute, ...toSecond });

export const NONE = "–";
export const PERIODS = { second: 1, minute: 60, hour: 3600, day: 86400 };

const textOf = (format) => (value) => (value == null ? NONE : format(value));

export const count = textOf((n) => whole.format(n));
export const perSecond = textOf((n) => three.format(n));
// "14:03:22 UTC", "1 Dec, 14:03 UTC" and "1 Dec, 14:03:22 UTC", in the browser's time zone.
export const time = textOf((at) => clock.format(new Date(at)));
export const date = textOf((at) => dated.format(new Date(at)));
export const instant = textOf((at) => precise.format(new Date(at)));

export const zone = (at = Date.now()) => clock.formatToParts(new Date(at)).find(({ type }) => type === "timeZoneName").value;

// "1 Dec, 14:03 – 2 Dec, 14:03 UTC"
export const range = (from, to) => (from && to ? dated.formatRange(new Date(from), new Date(to)) : `${date(from)} – no end`);

export const visits = (n) => `${count(n)} ${n === 1 ? "visit" : "visits"}`;

export const percent = (part, all) => (all > 0 ? `${Math.floor((100 * part) / all)} %` : NONE);

// "7.5 / second"
export const rate = (number, period) => `${exact.format(number)} / ${period}`;

// "33.33 / minute", as the table has it.
export const target = (row) => (row.visits_per_unit == null ? NONE : `${row.visits_per_unit} / ${row.time_period ?? "?"}`);

// The actual rate, in the unit of the target.
export function actual(row) {
  if (row.actual_per_second == null || !(row.time_period in PERIODS) || ["paused", "invalid"].includes(row.status)) return NONE;
  return three.format(row.actual_per_second * PERIODS[row.time_period]);
}

export const seconds = textOf((s) => {
  if (s < 0.001) return "< 1 ms";
  if (s < 1) return `${three.format(1000 * s)} ms`;
  if (s < 120) return `${three.format(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
});

// "in 3 h", "4 min ago"
export function relative(at, now) {
  if (at == null || now == null) return NONE;
  const ahead = (Date.parse(at) - Date.parse(now)) / 1000;
  if (Math.abs(ahead) < 1) return "now";
  return ahead > 0 ? `in ${seconds(ahead)}` : `${seconds(-ahead)} ago`;
}

export const partner = (row) => row.partner ?? (row.partner_id ? row.partner_id.slice(0, 8) : "no partner");

// A shape, so that not colour alone tells statuses apart, and the meaning. In the order of the default sorting: problems first.
const STATUSES = {
  behind: { shape: "▼", tone: "bad", meaning: "more than one second's worth below its curve" },
  invalid: { shape: "✖", tone: "bad", meaning: "a value is not valid, or the inserts fail" },
  draining: { shape: "◢", tone: "warn", meaning: "window over, remaining visits are being stored" },
  paused: { shape: "❙❙", tone: "warn", meaning: "is_active is false" },
  active: { shape: "●", tone: "good", meaning: "on its curve" },
  scheduled: { shape: "◷", tone: "calm", meaning: "starts later" },
  ended: { shape: "■", tone: "calm", meaning: "window over, below the total" },
  completed: { shape: "✓", tone: "calm", meaning: "total reached" },
};
const ALL_PAUSED = { shape: "❙❙", tone: "warn", meaning: "on its curve, but everything is paused" };
const UNKNOWN = { shape: "•", tone: "calm", meaning: "" };

export const ORDER = Object.keys(STATUSES);

export const status = (name, allPaused) => (allPaused && name === "active" ? ALL_PAUSED : STATUSES[name] ?? UNKNOWN);
