// What one would write in an afternoon: follows the table with the official client, and each second inserts what is due with pg.
// Kept short and fair: one statement a second for all rows, ticks on full seconds, counts from the clock rather than by adding up.
// It knows no crash, no second copy of itself, no lock and no number; what a pause costs is what it costs.
//
// Environment: DATABASE_URL, SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY.

import { createClient } from "@supabase/supabase-js";
import pg from "pg";
import ws from "ws";

const { DATABASE_URL, SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY } = process.env;
const SECONDS = { second: 1, minute: 60, hour: 3600, day: 86400 };
const db = new pg.Client(DATABASE_URL);
const rows = new Map();

function take(row) {
  const known = rows.get(row.id);
  rows.set(row.id, {
    id: row.id,
    partner: row.partner_id,
    active: row.is_active,
    perSecond: Number(row.visits_per_unit) / SECONDS[row.time_period],
    start: new Date(row.start_time ?? Date.now()).getTime(),
    total: Number(row.total_visits),
    stored: known?.stored ?? 0,
  });
}

async function tick() {
  const now = Date.now();
  const ids = [], partners = [], moments = [];
  for (const row of rows.values()) {
    if (!row.active) continue;
    const due = Math.min(row.total, Math.floor((Math.max(0, now - row.start) / 1000) * row.perSecond + 0.5));
    for (; row.stored < due; row.stored++) {
      ids.push(row.id);
      partners.push(row.partner);
      moments.push(new Date(now));
    }
  }
  if (ids.length === 0) return;
  await db.query(
    `insert into store_visits (distribution_id, partner_id, visited_at, session_duration, page_path, device_type)
     select d, p, at, 5 + (random() * 300)::int, '/', 'desktop' from unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) as v (d, p, at)`,
    [ids, partners, moments],
  );
}

await db.connect();
const realtime = globalThis.WebSocket ? {} : { transport: ws };
createClient(SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY, { realtime })
  .channel("pacer")
  .on("postgres_changes", { event: "*", schema: "public", table: "visit_distribution" }, ({ eventType, new: row, old }) =>
    eventType === "DELETE" ? rows.delete(old.id) : take(row))
  .subscribe();
for (const row of (await db.query("select * from visit_distribution")).rows) take(row);

setTimeout(() => {
  tick();
  setInterval(tick, 1000);
}, 1000 - (Date.now() % 1000));
process.on("SIGTERM", () => process.exit(0));
