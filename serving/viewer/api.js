// Requests to the service. Paths are relative, so that the page also works behind a proxy's prefix.

import { storedToken } from "./token.js";

/** An answer that is no success. `status` is 0 where there was no answer at all. */
export class Refusal extends Error {
  constructor(status, sentence, retrySeconds = null) {
    super(sentence);
    this.status = status;
    this.retrySeconds = retrySeconds;
  }
}

/** Sends a request; gives the Response of a success, throws a Refusal otherwise (an AbortError where cancelled). */
export async function ask(path, options = {}) {
  const token = storedToken();
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "the service did not answer");
  }
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

async function refusalOf(answer) {
  let sentence = `the service answered ${answer.status}`;
  try {
    sentence = (await answer.json()).error ?? sentence;
  } catch {
    // A proxy before the service speaks, which knows no sentence.
  }
  const seconds = Number(answer.headers.get("Retry-After"));
  return new Refusal(answer.status, sentence, seconds > 0 ? seconds : null);
}
