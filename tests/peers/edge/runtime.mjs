// The Edge Function in the real Deno runtime, as a process without any right but the network of
// this machine and the settings that Supabase gives it.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { once } from "node:events";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

export const FUNCTION = here("../../../deploy/supabase/functions/distribute-visits/index.ts");

const SETTINGS = [
  "SUPABASE_URL",
  "SUPABASE_SERVICE_ROLE_KEY",
  "SUPABASE_SECRET_KEY",
  "SUPABASE_SECRET_KEYS",
];
/** No module may come from anywhere. */
export const ALONE = ["--no-config", "--no-lock", "--no-remote", "--no-npm"];

/** Everything happens within this time. */
const patience = () => AbortSignal.timeout(30_000);

/** Starts Deno; its output is told as `said`, and its input keeps what watches it running. */
export function deno(args, settings = {}) {
  const program = createRequire(import.meta.url)("deno/install_api.cjs").runInstall();
  const child = spawn(program, args, {
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      DENO_DIR: here("../node_modules/.deno"),
      DENO_NO_UPDATE_CHECK: "1",
      DENO_SERVE_ADDRESS: "tcp:127.0.0.1:0",
      NO_COLOR: "1",
      ...settings,
    },
  });
  child.said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => {
      child.said += text;
      child.emit("said");
    });
  }
  return child;
}

/** The function, serving. */
export class EdgeFunction {
  /** With `preload`, a file beside this one runs first. */
  static async start(settings, preload = []) {
    const edge = new EdgeFunction();
    const first = preload.map((file) => `--preload=${here(file)}`);
    const rights = ["--no-prompt", "--allow-net=127.0.0.1", `--allow-env=${SETTINGS}`];
    edge.process = deno(["run", ...ALONE, ...rights, ...first, here("leash.mjs")], settings);
    edge.process.once("exit", () => edge.process.emit("said"));
    while (!(edge.url = edge.said.match(/http:\/\/127\.0\.0\.1:\d+/)?.[0])) {
      if (edge.ended) throw new Error(`the function ended: ${edge.said}`);
      await once(edge.process, "said", { signal: patience() });
    }
    return edge;
  }

  /** Whether the process is gone. */
  get ended() {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  /** All that it has printed. */
  get said() {
    return this.process.said;
  }

  /** Its answer to a POST, or to what else `init` says: status, headers, and the JSON value. */
  async ask(headers, body, init = {}) {
    const answer = await fetch(this.url, {
      method: "POST",
      headers,
      body,
      signal: patience(),
      ...init,
    });
    const text = await answer.text();
    return { status: answer.status, headers: answer.headers, text, value: JSON.parse(text) };
  }

  async stop() {
    this.process.stdin.end();
    if (!this.ended) await once(this.process, "exit", { signal: patience() });
  }
}
