// The server's routes. The token is a variable of this page and goes into a header only.

let token = null;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useToken(value) {
  token = value;
}

/** Ask a route and return what it answers; throws Refused with the server's reason. */
export async function ask(method, path, body) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit", cache: "no-store", redirect: "error",
    });
  } catch {
    throw new Refused(0, "The server does not answer; see whether it still runs.");
  }
  const found = await reply.json().catch(() => null);
  if (reply.ok) return found;
  throw new Refused(reply.status, reason(found) || `The server answers ${reply.status}.`);
}

function reason(found) {
  if (found === null || found.detail === undefined) return "";
  if (!Array.isArray(found.detail)) return String(found.detail);
  return found.detail.map((one) => `${one.loc.slice(1).join(".")}: ${one.msg}`).join("; ");
}
