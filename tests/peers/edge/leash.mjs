// Runs the function, and ends it with the standard input, so that it never outlives the process
// that started it.

import "../../../deploy/supabase/functions/distribute-visits/index.ts";

for await (const _ of Deno.stdin.readable);
Deno.exit(0);
