// The Edge Function `distribute-visits` in the real Deno runtime, before a stand-in for PostgREST
// on a real, migrated database in which nothing is distributed yet.
//
// Environment: DATABASE_URL, as the owner of everything. One line for each promise; exit status 1
// where one is not kept.

import assert from "node:assert/strict";
import { once } from "node:events";
import { randomBytes, randomUUID } from "node:crypto";
import { after, test } from "node:test";
import pg from "pg";
import { Postgrest } from "./postgrest.mjs";
import { ALONE, deno, EdgeFunction, FUNCTION } from "./runtime.mjs";

const token = (claims) =>
  [{ alg: "HS256", typ: "JWT" }, claims, {}]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".") + randomBytes(24).toString("base64url");
const SERVICE_ROLE = token({ role: "service_role" });
const ANON = token({ role: "anon" });
const SECRET = `sb_secret_${randomBytes(24).toString("base64url")}`;
const OTHER_SECRET = `sb_secret_${randomBytes(24).toString("base64url")}`;
const KEYS = [SERVICE_ROLE, SECRET, OTHER_SECRET];

const bearer = (key) => ({ authorization: `Bearer ${key}` });
const HELD = bearer(SERVICE_ROLE);

const database = new pg.Client({ connectionString: process.env.DATABASE_URL });
await database.connect();
const postgrest = await Postgrest.start(process.env.DATABASE_URL, KEYS);
const started = [];
const start = async (settings, preload) => {
  const edge = await EdgeFunction.start(settings, preload);
  started.push(edge);
  return edge;
};
const edge = await start({
  SUPABASE_URL: postgrest.url,
  SUPABASE_SERVICE_ROLE_KEY: SERVICE_ROLE,
  SUPABASE_SECRET_KEYS: JSON.stringify({ default: SECRET, cron: OTHER_SECRET }),
});

/** Everything that was answered, to be searched for keys at the end. */
const answers = [];
const ask = async (from, ...request) => {
  const answer = await from.ask(...request);
  answers.push(answer.text, JSON.stringify([...answer.headers]));
  return answer;
};
const refused = async (status, headers, body, init) => {
  const before = postgrest.asked.length;
  const answer = await ask(edge, headers, body, init);
  assert.equal(answer.status, status, answer.text);
  assert.deepEqual(Object.keys(answer.value), ["error"]);
  assert.equal(postgrest.asked.length, before, "the database is not asked");
  return answer;
};

after(async () => {
  for (const each of started) await each.stop();
  await postgrest.stop();
  await database.end();
});

const one = async (sql, ...values) => {
  const { rows } = await database.query({ text: sql, values, rowMode: "array" });
  return rows[0]?.[0];
};

/** A partner with one row, whose window is `from` to `to` seconds from now. */
async function row(total, pace, unit, from, to) {
  const partner = await one("insert into partners (name) values ('a partner') returning id");
  const id = await one(
    `insert into visit_distribution
       (partner_id, total_visits, visits_per_unit, time_period, start_time, end_time)
     select $1, $2, $3, $4, now() + $5 * interval '1 second', now() + $6 * interval '1 second'
     returning id`,
    partner, total, pace, unit, from, to,
  );
  return { partner, id };
}

/** How many visits are stored; they are numbered from 1 without gap or duplicate. */
async function stored(id) {
  const [count, distinct, last] = await one(
    `select array[count(*), count(distinct visit_number), coalesce(max(visit_number), 0)]::int[]
       from store_visits where distribution_id = $1`,
    id,
  );
  assert.deepEqual([distinct, last], [count, count], "the numbers of the visits");
  return count;
}

const pause = (id) =>
  database.query("update visit_distribution set is_active = false where id = $1", [id]);

for (const [what, args] of [
  ["has its types right, and imports nothing", ["check", ...ALONE]],
  ["is as deno lint has it", ["lint", "--no-config"]],
  ["is as deno fmt has it", ["fmt", "--no-config", "--check"]],
]) {
  test(`the function ${what}`, async () => {
    const child = deno([...args, FUNCTION]);
    const [status] = await once(child, "close");
    assert.equal(status, 0, child.said);
  });
}

test("with no active distribution the answer is an empty array", async () => {
  const answer = await ask(edge, HELD);
  assert.deepEqual([answer.status, answer.value], [200, []]);
  assert.match(answer.headers.get("content-type"), /^application\/json/);
  assert.equal(postgrest.asked.at(-1), "/rest/v1/rpc/distribute_visits");
});

test("a call without a body stores what is due and answers with the function's rows", async () => {
  const { partner, id } = await row(600, 3600, "minute", -10, 0);
  const first = await ask(edge, HELD);
  assert.deepEqual([first.status, first.value.length], [200, 1], first.text);
  assert.deepEqual(first.value[0], {
    partner_id: partner,
    visits_added: 600,
    total_distributed_now: 600,
    message: first.value[0].message,
  });
  assert.equal(await stored(id), 600);
  const second = await ask(edge, HELD, "{}");
  assert.deepEqual(second.value.map((each) => each.visits_added), [0]);
  assert.equal(await stored(id), 600);
  await pause(id);
});

test("a call for a partner adds exactly so many visits to that partner", async () => {
  const own = await row(1000, 1, "day", 0, 86400);
  const other = await row(1000, 1, "day", 0, 86400);
  const answer = await ask(edge, HELD, JSON.stringify({ partner_id: own.partner, visits: 50 }));
  assert.equal(answer.status, 200, answer.text);
  assert.equal(postgrest.asked.at(-1), "/rest/v1/rpc/distribute_visits_for_partner");
  assert.deepEqual(
    answer.value.map((each) => [each.partner_id, each.visits_added, each.total_distributed_now]),
    [[own.partner, 50, 50]],
  );
  assert.equal(await stored(own.id), 50);
  assert.equal(await stored(other.id), 0);
  await pause(own.id);
  await pause(other.id);
});

test("a partner that there is not is a row with the reason, not an error", async () => {
  const partner = randomUUID();
  const answer = await ask(edge, HELD, JSON.stringify({ partner_id: partner, visits: 1 }));
  assert.deepEqual([answer.status, answer.value.length], [200, 1], answer.text);
  assert.equal(answer.value[0].visits_added, 0);
  assert.match(answer.value[0].message, /there is no partner/);
});

test("eight callers at once store every due visit once", async () => {
  const { id } = await row(5000, 1000, "second", -5, 0);
  let added = 0;
  for (let round = 0; round < 20 && added < 5000; round += 1) {
    const calls = await Promise.all(Array.from({ length: 8 }, () => ask(edge, HELD)));
    for (const { status, value, text } of calls) {
      assert.equal(status, 200, text);
      added += value[0].visits_added;
    }
  }
  assert.deepEqual([added, await stored(id)], [5000, 5000]);
  await pause(id);
});

test("beside a live agent it stores no more than the row's bucket holds", async () => {
  const { id } = await row(6000, 3600, "minute", -100, 0);
  const agent = await one(
    "insert into visit_pacer_agents (id, name) values (gen_random_uuid(), 'another') returning id",
  );
  const answer = await ask(edge, HELD);
  assert.deepEqual(answer.value.map((each) => each.visits_added), [121], answer.text);
  assert.equal(await stored(id), 121);
  await database.query("delete from visit_pacer_agents where id = $1", [agent]);
  await pause(id);
});

for (const [what, headers] of [
  ["the service_role key as a Bearer token", HELD],
  ["the scheme in any case", { authorization: `bearer ${SERVICE_ROLE}` }],
  ["the service_role key as apikey", { apikey: SERVICE_ROLE }],
  ["a secret key as apikey", { apikey: SECRET }],
  ["another secret key of the project", { apikey: OTHER_SECRET }],
  ["a secret key as a Bearer token", bearer(SECRET)],
  ["a secret key beside a token of somebody's", { ...bearer(ANON), apikey: SECRET }],
]) {
  test(`let in: ${what}`, async () => {
    const answer = await ask(edge, headers);
    assert.equal(answer.status, 200, answer.text);
  });
}

for (const [what, headers] of [
  ["no key", {}],
  ["an empty key", { authorization: "Bearer ", apikey: "" }],
  ["the anon key", { ...bearer(ANON), apikey: ANON }],
  ["the beginning of the key", bearer(SERVICE_ROLE.slice(0, -1))],
  ["the key and more", bearer(`${SERVICE_ROLE}x`)],
  ["a key of the same length", bearer(`${SERVICE_ROLE.slice(0, -1)}~`)],
  ["the key without its scheme", { authorization: SERVICE_ROLE }],
  ["the key under another scheme", { authorization: `Basic ${SERVICE_ROLE}` }],
  ["the dictionary of keys", { apikey: JSON.stringify({ default: SECRET, cron: OTHER_SECRET }) }],
]) {
  test(`401: ${what}`, async () => {
    const answer = await refused(401, headers);
    assert.equal(answer.headers.get("www-authenticate"), "Bearer");
  });
}

test("401 comes before the body is read", async () => {
  await refused(401, {}, "not JSON");
});

for (const method of ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"]) {
  test(`405: ${method}`, async () => {
    const answer = await refused(405, HELD, undefined, { method });
    assert.equal(answer.headers.get("allow"), "POST");
  });
}

const partner_id = randomUUID();
for (const [what, body, reason] of [
  ["not JSON", "partner_id=1", /not a JSON object/],
  ["not UTF-8", Buffer.from([0x22, 0xff, 0x22]), /not UTF-8/],
  ["cut UTF-8", Buffer.from([0x22, 0xc3]), /not UTF-8/],
  ["null", "null", /not a JSON object/],
  ["an array", "[]", /not a JSON object/],
  ["a number", "50", /not a JSON object/],
  ["visits alone", { visits: 50 }, /partner_id is missing/],
  ["a partner alone", { partner_id }, /visits is missing/],
  ["a partner that is no uuid", { partner_id: "1", visits: 1 }, /partner_id is "1"/],
  ["a uuid and more", { partner_id: `${partner_id}'`, visits: 1 }, /partner_id is/],
  ["a partner that is null", { partner_id: null, visits: 1 }, /partner_id is null/],
  ["no visits", { partner_id, visits: 0 }, /visits is 0/],
  ["visits below 0", { partner_id, visits: -1 }, /visits is -1/],
  ["too many visits", { partner_id, visits: 10001 }, /visits is 10001/],
  ["half a visit", { partner_id, visits: 1.5 }, /visits is 1.5/],
  ["visits as text", { partner_id, visits: "50" }, /visits is "50"/],
  ["a field that is not known", { partner_id, visits: 1, max_visits: 1 }, /a field "max_visits"/],
  ["a field of every object", `{"__proto__": {}}`, /a field "__proto__"/],
  ["a body of 1025 bytes", " ".repeat(1025), /too large/],
  ["a body of 1 MiB", "x".repeat(1 << 20), /too large/],
]) {
  test(`400: ${what}`, async () => {
    const text = typeof body === "string" || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    const answer = await refused(400, HELD, text);
    assert.match(answer.value.error, reason);
  });
}

test("the bounds themselves are good: 10000 visits, and a body of 1024 bytes", async () => {
  const body = JSON.stringify({ partner_id: partner_id.toUpperCase(), visits: 10000 });
  const answer = await ask(edge, HELD, body.padEnd(1024));
  assert.equal(answer.status, 200, answer.text);
});

const json = (status, value) => (response) =>
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
const CANCELED = { code: "57014", message: "canceling statement due to statement timeout" };
for (const [what, instead, reason] of [
  ["refuses the key", json(401, { message: "Invalid API key" }), /does not accept the key/],
  ["fails", json(500, CANCELED), /500: canceling statement/],
  ["answers with a page", (response) => response.end("<html>"), /200 and no rows/],
  ["answers with an object", json(200, {}), /200 and no rows/],
  ["redirects", (response) => response.writeHead(303, { location: "/" }).end(), /reached/],
  ["breaks off", (response) => response.destroy(), /could not be reached, or broke off/],
]) {
  test(`502: PostgREST ${what}`, async () => {
    postgrest.instead = instead;
    const before = postgrest.asked.length;
    const answer = await ask(edge, HELD).finally(() => (postgrest.instead = null));
    assert.equal(answer.status, 502, answer.text);
    assert.match(answer.value.error, reason);
    assert.equal(postgrest.asked.length, before + 1, "it is asked once");
    assert.ok(edge.said.includes(answer.value.error), "the log has the reason");
  });
}

test("502: PostgREST does not answer in time", async () => {
  const settings = { SUPABASE_URL: postgrest.url, SUPABASE_SECRET_KEY: SECRET };
  const impatient = await start(settings, ["impatient.mjs"]);
  postgrest.instead = () => {};
  const answer = await ask(impatient, { apikey: SECRET }).finally(() => (postgrest.instead = null));
  assert.equal(answer.status, 502, answer.text);
  assert.match(answer.value.error, /did not answer within 20 s; the visits may be stored/);
});

test("502: nobody listens at SUPABASE_URL", async () => {
  const settings = { SUPABASE_URL: "http://127.0.0.1:1/", SUPABASE_SECRET_KEY: SECRET };
  const answer = await ask(await start(settings), { apikey: SECRET });
  assert.equal(answer.status, 502, answer.text);
  assert.match(answer.value.error, /could not be reached/);
});

test("502: a database without the migrations, naming what to do", async () => {
  await database.query("alter function distribute_visits(integer) rename to another_name");
  const answer = await ask(edge, HELD);
  await database.query("alter function another_name(integer) rename to distribute_visits");
  assert.equal(answer.status, 502, answer.text);
  assert.match(answer.value.error, /no function distribute_visits; apply visit-pacer's migrations/);
});

test("502: a role that may not call the function", async () => {
  const name = "function distribute_visits(integer)";
  await database.query(`revoke execute on ${name} from service_role`);
  const answer = await ask(edge, HELD);
  await database.query(`grant execute on ${name} to service_role`);
  assert.equal(answer.status, 502, answer.text);
  assert.match(answer.value.error, /permission denied/);
});

for (const [what, settings, reason] of [
  ["no key", { SUPABASE_URL: postgrest.url }, /found none; Supabase sets them/],
  ["empty keys", { SUPABASE_URL: postgrest.url, SUPABASE_SERVICE_ROLE_KEY: " " }, /found none/],
  ["keys that are no JSON", { SUPABASE_SECRET_KEYS: SECRET }, /SUPABASE_SECRET_KEYS is not a JSON/],
  ["a key that is no dictionary", { SUPABASE_SECRET_KEYS: JSON.stringify(SECRET) }, /not a JSON/],
  ["no URL", { SUPABASE_SECRET_KEY: SECRET }, /SUPABASE_URL is not set/],
]) {
  test(`500: ${what} in the settings`, async () => {
    const answer = await ask(await start(settings), { apikey: SECRET });
    assert.equal(answer.status, 500, answer.text);
    assert.match(answer.value.error, reason);
  });
}

test("no key is in any answer or log", () => {
  const said = [...answers, ...started.map((each) => each.said)].join("\n");
  assert.match(said, /PostgREST/);
  for (const key of [...KEYS, ANON]) {
    assert.ok(!said.includes(key.slice(-16)), "a key is told");
  }
});
