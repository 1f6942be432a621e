// The API by openapi-fetch with the types of openapi-typescript; prints what it read as JSON.
//
// node client.ts URL TOKEN EXECUTION_ID SINCE
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, token, executionId, since] = process.argv.slice(2) as [string, string, string, string];
const path = "/v1/executions/{execution_id}/events";

type Events = components["schemas"]["EventList"];
type Query = NonNullable<paths[typeof path]["get"]["parameters"]["query"]>;

async function list(query: Query, headers: Record<string, string> = { "X-Auth-Token": token }) {
  const api = createClient<paths>({ baseUrl: url, headers });
  return api.GET(path, { params: { path: { execution_id: executionId }, query } });
}

function names(events: Events | string | undefined): string[] {
  if (typeof events !== "object") throw new Error("expected a list");
  return events.map((event) => event.metadata.name);
}

type Executions = components["schemas"]["ExecutionList"];
type ExecutionsQuery = NonNullable<paths["/v1/executions"]["get"]["parameters"]["query"]>;

async function executions(query: ExecutionsQuery) {
  const api = createClient<paths>({ baseUrl: url, headers: { "X-Auth-Token": token } });
  return api.GET("/v1/executions", { params: { query: { lang: "en", ...query } } });
}

function shown(list: Executions | string | undefined) {
  if (typeof list !== "object") throw new Error("expected a list");
  return list.map((each) => [
    each.executionId,
    each.state,
    each.events,
    each.firstFailure === null ? null : each.firstFailure.reason,
  ]);
}

const all: unknown[] = [];
for (let marker: string | null | undefined; marker !== null; ) {
  const page = await executions({ limit: 1, order: "asc", ...(marker === undefined ? {} : { marker }) });
  all.push(...shown(page.data));
  marker = page.response.headers.get("X-Next-Marker");
}

const pages: string[][] = [];
for (let marker: string | null | undefined; marker !== null; ) {
  const page = await list(marker === undefined ? { limit: 2 } : { limit: 2, marker });
  pages.push(names(page.data));
  marker = page.response.headers.get("X-Next-Marker");
}
const wrong = await list({ marker: "wrong" });
const unauthorized = await list({ marker: "wrong" }, {});
console.log(
  JSON.stringify({
    list: names((await list({})).data),
    since: names((await list({ since })).data),
    pages,
    executions: all,
    failed: shown((await executions({ state: ["failed", "timed_out"] })).data),
    wrong: [wrong.response.status, wrong.error?.error_code],
    unauthorized: [unauthorized.response.status, unauthorized.error?.error_code],
  }),
);
