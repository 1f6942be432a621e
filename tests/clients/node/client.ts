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
    wrong: [wrong.response.status, wrong.error?.error_code],
    unauthorized: [unauthorized.response.status, unauthorized.error?.error_code],
  }),
);
