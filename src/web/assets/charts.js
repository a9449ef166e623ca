// The two charts of a distribution: stored visits against the target. Wraps uPlot (uplot.js), in the page's colours.
import uPlot from "./uplot.js";
import { zone } from "./format.js";
import { colour } from "./theme.js";

const HEIGHT = 200;
const AXIS_FONT = "11px system-ui, sans-serif";

const axis = (more = {}) => ({
  stroke: colour("quiet"),
  grid: { stroke: colour("line"), width: 1 },
  ticks: { stroke: colour("line"), width: 1 },
  font: AXIS_FONT,
  ...more,
});

const clock = (withSeconds) => new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", ...(withSeconds && { second: "2-digit" }),
});
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

// The ticks of the time axis; days for a long window.
function times(u, values, _axis, _space, step) {
  const format = step >= 86400 ? day : clock(step < 60);
  return values.map((v) => format.format(new Date(v * 1000)));
}

const whole = (u, values) => values.map((v) => (Number.isInteger(v) ? v.toLocaleString("en") : ""));

function series(label, tone, more) {
  return { label, stroke: colour(tone), width: 2, points: { show: false }, ...more };
}

function marks(edits) {
  return {
    hooks: {
      draw: [(u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.strokeStyle = colour("warn");
        ctx.setLineDash([4, 4]);
        for (const edit of edits()) {
          const x = u.valToPos(Date.parse(edit.at) / 1000, "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.restore();
      }],
    },
  };
}

function chart(into, lines, data, edits) {
  const plot = new uPlot({
    width: Math.max(220, into.clientWidth),
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    legend: { live: true },
    scales: { y: { range: (u, min, max) => [0, Math.max(1, max * 1.1)] } },
    axes: [axis({ values: times, space: 80, label: `Time (${zone()})`, labelSize: 16, labelFont: AXIS_FONT }), axis({ size: 62, values: whole })],
    series: [{ label: `Time (${zone()})`, value: (u, v) => (v == null ? "–" : clock(true).format(new Date(v * 1000))) }, ...lines],
    plugins: [marks(edits)],
  }, data, into);
  const fit = new ResizeObserver(() => plot.setSize({ width: Math.max(220, into.clientWidth), height: HEIGHT }));
  fit.observe(into);
  return { set: (next) => plot.setData(next), destroy: () => { fit.disconnect(); plot.destroy(); } };
}

// Visits per second, over the last two minutes.
export function secondsChart(into, data, edits) {
  const bars = uPlot.paths.bars({ size: [0.8, 12] });
  const dots = { show: true, size: 5, fill: colour("ink"), stroke: colour("ink") };
  return chart(into, [
    series("Stored", "accent", { paths: bars, fill: colour("accent-soft"), width: 1 }),
    series("Target", "ink", { paths: () => null, points: dots }),
  ], data, edits);
}

// Cumulative, over the whole window.
export function totalsChart(into, data, edits) {
  const steps = uPlot.paths.stepped({ align: 1 });
  return chart(into, [
    series("Stored", "accent", { paths: steps, fill: colour("accent-soft") }),
    series("Target", "ink", { dash: [6, 4], width: 1.5, spanGaps: true }),
  ], data, edits);
}

export function secondsData(seconds) {
  const times = [...seconds.keys()].sort((a, b) => a - b);
  return [times, times.map((t) => seconds.get(t).stored), times.map((t) => seconds.get(t).target)];
}

export function totalsData({ target, stored }) {
  const table = (points) => [points.map(([at]) => Date.parse(at) / 1000), points.map(([, n]) => n)];
  return uPlot.join([table(stored), table(target)]);
}
