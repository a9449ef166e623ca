// A stand-in for PostgREST's `POST /rest/v1/rpc/FUNCTION`, on a real database and as the role
// `service_role`: named arguments in a JSON object, the function's rows as a JSON array, errors
// with the database's code and message. Nothing else of PostgREST is here.

import { createServer } from "node:http";
import { once } from "node:events";
import pg from "pg";

const UNDEFINED_FUNCTION = "42883";

export class Postgrest {
  /** The paths that were asked for. */
  asked = [];
  /** Where it is set, answers in place of the database: (response) => void. */
  instead = null;

  /** Answers who shows one of the keys, as Supabase's gateway takes them. */
  static async start(databaseUrl, keys) {
    const postgrest = new Postgrest();
    postgrest.keys = keys;
    postgrest.pool = new pg.Pool({ connectionString: databaseUrl, max: 10 });
    postgrest.server = createServer((request, response) => postgrest.#answer(request, response));
    postgrest.server.listen(0, "127.0.0.1");
    await once(postgrest.server, "listening");
    postgrest.url = `http://127.0.0.1:${postgrest.server.address().port}`;
    return postgrest;
  }

  async stop() {
    this.server.close();
    this.server.closeAllConnections();
    await this.pool.end();
  }

  async #answer(request, response) {
    this.asked.push(request.url);
    let body = "";
    for await (const part of request.setEncoding("utf8")) body += part;
    if (this.instead) return this.instead(response);
    const [status, value] = this.#knows(request.headers)
      ? await this.#call(request, body)
      : [401, { code: "PGRST301", message: "JWT could not be decoded" }];
    response.writeHead(status, { "content-type": "application/json; charset=utf-8" });
    response.end(typeof value === "string" ? value : JSON.stringify(value));
  }

  /** A secret key comes as `apikey` alone, a token as both. */
  #knows({ apikey, authorization }) {
    const token = apikey?.startsWith("sb_") ? undefined : `Bearer ${apikey}`;
    return this.keys.includes(apikey) && authorization === token;
  }

  async #call(request, body) {
    const name = request.url.match(/^\/rest\/v1\/rpc\/([a-z_]+)$/)?.[1];
    if (request.method !== "POST" || !name) return [404, { message: "not the rpc of a function" }];
    const args = Object.entries(JSON.parse(body));
    const list = args.map(([key], at) => `${pg.escapeIdentifier(key)} => $${at + 1}`).join(", ");
    const client = await this.pool.connect();
    try {
      await client.query("begin; set local role service_role");
      const { rows } = await client.query(
        `select coalesce(json_agg(r), '[]')::text as body from public.${name}(${list}) r`,
        args.map(([, value]) => value),
      );
      await client.query("commit");
      return [200, rows[0].body];
    } catch (error) {
      await client.query("rollback");
      const known = error.code !== UNDEFINED_FUNCTION;
      return [known ? 400 : 404, { code: known ? error.code : "PGRST202", message: error.message }];
    } finally {
      client.release();
    }
  }
}
