// Subscribes to every change of one table with the official client and its default options, and
// prints a JSON line for each thing that happens. Ends when its standard input does.
//
// Environment: SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY, TABLE (of the schema public).

import { createClient } from "@supabase/supabase-js";
import ws from "ws";

const { SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY, TABLE } = process.env;
const say = (line) => console.log(JSON.stringify(line));

// Node has a WebSocket of its own from version 22 on.
const realtime = globalThis.WebSocket ? {} : { transport: ws };
const client = createClient(SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY, { realtime });

client
  .channel("peer")
  .on("postgres_changes", { event: "*", schema: "public", table: TABLE }, (change) => say({ change }))
  .on("system", {}, (system) => say({ system }))
  .subscribe((status, error) => say({ status, error: error?.message }));

process.stdin.resume().on("end", async () => {
  await client.removeAllChannels();
  process.exit(0);
});
