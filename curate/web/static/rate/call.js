// Requests to the server, with the token of the session; a failed one rejects with {status}.

let csrf = "";
let person = null;

// Whose page this is: another person who signs in meanwhile does not answer for this one.
export function begin(token, id) {
  csrf = token;
  person = id;
}

const failed = (status, message) => Object.assign(new Error(message), { status });

export async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
  });
  if (answer.status === 403 && method !== "GET") {
    // Signed in anew in another tab: the token is another one. Somebody else is as good as nobody.
    const me = await fetch("/api/me");
    const fresh = me.ok ? await me.json() : null;
    if (!fresh || fresh.id !== person) throw failed(401, "signed out");
    if (fresh.csrf !== csrf) {
      csrf = fresh.csrf;
      return call(method, path, body);
    }
  }
  if (!answer.ok) throw failed(answer.status, (await answer.json().catch(() => ({}))).detail ?? answer.statusText);
  return answer.json();
}

export const sendAnswers = (campaign, answers) => call("POST", `/api/campaigns/${campaign}/answers`, { answers });
