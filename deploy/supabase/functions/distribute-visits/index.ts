// distribute-visits: an Edge Function that replaces the cron job, called by an external scheduler.
//
//   POST without a body                        select * from distribute_visits()
//   POST {"partner_id": "…", "visits": 50}     select * from distribute_visits_for_partner('…', 50)
//
// The response is the function's rows as a JSON array, or {"error": "…"}: 400 for an invalid body,
// 401 without one of the project's secret keys, 405 for another method, 500 if a setting is missing,
// 502 if PostgREST fails.
//
// The database does all the work; this function checks the caller and the arguments. It may be called
// at any time, concurrently, and beside an agent: a call without a body stores what is due and not yet
// stored, beside a live agent limited by each distribution's token bucket. A call for a partner adds
// the visits each time.
//
// PostgREST is called with the caller's key. No key is written to a response or a log, and neither is
// an error of the runtime, which may quote its input. There are no imports, and CORS preflights are not
// answered: a secret key must not be used in a browser.

/** Limit of `distribute_visits_for_partner`. */
const MOST_VISITS = 10_000;
/** A partner id and a number need about 80. */
const MOST_BODY_BYTES = 1_024;
/** Longer than a call's time limit and Supabase's statement timeout. */
const PATIENCE_MS = 20_000;
/** Characters of a PostgREST error message. */
const MOST_WORDS = 300;

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** A function of the database and its named arguments. */
interface Call {
  name: "distribute_visits" | "distribute_visits_for_partner";
  args: Record<string, string | number>;
}

/** A response other than rows; the caller sees the message. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

Deno.serve(async (request) => {
  try {
    return Response.json(await distribute(request));
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    const { status, message, headers } = refusal;
    if (status >= 500) console.error(`distribute-visits: ${message}`);
    return Response.json({ error: message }, { status, headers });
  }
});

async function distribute(request: Request): Promise<unknown[]> {
  if (request.method !== "POST") {
    throw new Refusal(405, `expected POST, found ${request.method}`, {
      allow: "POST",
    });
  }
  const key = await shownKey(request.headers);
  return await rows(asked(await text(request)), key);
}

/** The caller's secret key, from a Bearer token or `apikey`. */
async function shownKey(headers: Headers): Promise<string> {
  const keys = secretKeys();
  if (keys.length === 0) {
    throw new Refusal(
      500,
      "expected a key in SUPABASE_SERVICE_ROLE_KEY, SUPABASE_SECRET_KEY or " +
        "SUPABASE_SECRET_KEYS, found none; Supabase sets them",
    );
  }
  const bearer = headers.get("authorization")?.match(/^Bearer +(\S+)$/i)?.[1];
  const shown = [bearer, headers.get("apikey")]
    .filter((key): key is string => !!key);
  const digests = await Promise.all(keys.map(digest));
  let found: string | undefined;
  for (const key of shown) {
    const seen = await digest(key);
    for (const expected of digests) {
      if (same(seen, expected)) found = key;
    }
  }
  if (found === undefined) {
    throw new Refusal(
      401,
      shown.length === 0
        ? "expected a key, found none; send Authorization: Bearer KEY, or apikey: KEY"
        : "expected the service_role key or a secret key of this project, found another",
      { "www-authenticate": "Bearer" },
    );
  }
  return found;
}

/** The keys that act as `service_role`, under the names of hosted and self-hosted projects. */
function secretKeys(): string[] {
  const one = ["SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY"].map(setting);
  return [...one, ...named(setting("SUPABASE_SECRET_KEYS") || "{}")]
    .filter((key) => key !== "");
}

/** The values of a JSON dictionary of keys. */
function named(dictionary: string): string[] {
  const keys = parsed(dictionary);
  if (typeof keys !== "object" || keys === null || Array.isArray(keys)) {
    throw new Refusal(
      500,
      "SUPABASE_SECRET_KEYS is not a JSON object of keys by name",
    );
  }
  return Object.values(keys).filter((key) => typeof key === "string");
}

function setting(name: string): string {
  return Deno.env.get(name)?.trim() ?? "";
}

/** SHA-256, so that keys of any length compare in constant time. */
async function digest(key: string): Promise<Uint8Array> {
  const bytes = new TextEncoder().encode(key);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

/** Compares two digests in constant time. */
function same(left: Uint8Array, right: Uint8Array): boolean {
  return left.reduce((bits, byte, at) => bits | (byte ^ right[at]), 0) === 0;
}

/** The body, read up to its size limit. */
async function text(request: Request): Promise<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let read = 0;
  let body = "";
  try {
    for await (const bytes of request.body ?? []) {
      read += bytes.length;
      if (read > MOST_BODY_BYTES) {
        throw new Refusal(
          400,
          `the body is too large: expected at most ${MOST_BODY_BYTES} bytes`,
        );
      }
      body += decoder.decode(bytes, { stream: true });
    }
    return body + decoder.decode();
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal(400, "the body is not UTF-8, or was cut short");
  }
}

/** Parses a request body. */
function asked(body: string): Call {
  const expected = `expected no body or {"partner_id": uuid, "visits": ` +
    `integer from 1 to ${MOST_VISITS}}`;
  const wrong = (found: string) => new Refusal(400, `${expected}; ${found}`);

  const fields = body.trim() === "" ? {} : parsed(body);
  if (
    typeof fields !== "object" || fields === null || Array.isArray(fields)
  ) {
    throw wrong("the body is not a JSON object");
  }
  const { partner_id: partner, visits, ...others } = fields as Record<
    string,
    unknown
  >;
  const [other] = Object.keys(others);
  if (other !== undefined) {
    throw wrong(`found a field ${JSON.stringify(other)}`);
  }
  if (partner === undefined && visits === undefined) {
    return { name: "distribute_visits", args: {} };
  }
  if (typeof partner !== "string" || !UUID.test(partner)) {
    throw wrong(`partner_id is ${JSON.stringify(partner) ?? "missing"}`);
  }
  if (
    typeof visits !== "number" || !Number.isInteger(visits) || visits < 1 ||
    visits > MOST_VISITS
  ) {
    throw wrong(`visits is ${JSON.stringify(visits) ?? "missing"}`);
  }
  return { name: "distribute_visits_for_partner", args: { partner, visits } };
}

/** Parses JSON; undefined if it is not valid. */
function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** The rows that the function returns; PostgREST limits them to its max-rows. */
async function rows(call: Call, key: string): Promise<unknown[]> {
  const base = setting("SUPABASE_URL").replace(/\/+$/, "");
  if (base === "") {
    throw new Refusal(500, "SUPABASE_URL is not set; Supabase sets it");
  }
  const headers = new Headers({
    "content-type": "application/json",
    apikey: key,
  });
  // sb_secret_… keys are not JWTs; PostgREST accepts them as `apikey` only.
  if (!key.startsWith("sb_")) headers.set("authorization", `Bearer ${key}`);

  let status: number;
  let body: unknown;
  try {
    const answer = await fetch(`${base}/rest/v1/rpc/${call.name}`, {
      method: "POST",
      headers,
      // A stream, since Deno resends any other body when the connection breaks before the response,
      // which would add a partner's visits twice.
      body: new Blob([JSON.stringify(call.args)]).stream(),
      redirect: "error",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    status = answer.status;
    body = parsed(await answer.text());
  } catch (error) {
    const late = error instanceof DOMException && error.name === "TimeoutError";
    throw new Refusal(
      502,
      (late
        ? `PostgREST did not answer within ${PATIENCE_MS / 1000} s`
        : "PostgREST could not be reached, or broke off") +
        "; the visits may be stored all the same: see visit_distribution_status",
    );
  }
  if (status === 200 && Array.isArray(body)) return body;
  throw new Refusal(502, failure(call, status, body));
}

/** The error message for a response of PostgREST. */
function failure(call: Call, status: number, body: unknown): string {
  const { code, message } = (body ?? {}) as Record<string, unknown>;
  if (status === 401) {
    return "PostgREST does not accept the key; legacy keys can be disabled in the API settings";
  }
  if (code === "PGRST202") {
    return `PostgREST knows no function ${call.name}; apply visit-pacer's migrations, ` +
      "and if it is there: notify pgrst, 'reload schema'";
  }
  if (typeof message === "string") {
    return `PostgREST answered ${status}: ${message.slice(0, MOST_WORDS)}`;
  }
  return `PostgREST answered ${status} and no rows; SUPABASE_URL must be the project's API URL`;
}
