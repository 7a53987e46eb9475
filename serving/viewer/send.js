// One volume to its mask: at once, or as a job that is polled.

import { ask, Refusal } from "./api.js";

const POLL_MS = 1000;
const LOST_POLLS = 30; // in a row: a job outlives the replica that is asked for it

/**
 * @param order {body: Blob, type, model, modality: string | null, asJob: boolean}
 * @param signal Cancels: a job is cancelled at the service, a request is given up.
 * @param onState Told "sending", "accepted", "running" or "lost".
 * @returns {bytes: ArrayBuffer, model, version, digest, use, flags: string[]}
 */
export async function segment(order, signal, onState) {
  const query = new URLSearchParams({ model: order.model });
  if (order.modality !== null) query.set("modality", order.modality);
  const request = { method: "POST", body: order.body, headers: { "Content-Type": order.type }, signal };
  onState("sending");
  if (!order.asJob) return made(await ask(`v1/segment?${query}`, request));
  const job = await (await ask(`v1/jobs?${query}`, request)).json();
  const path = `v1/jobs/${job.id}`;
  try {
    await finished(path, signal, onState);
  } catch (error) {
    if (error.name === "AbortError") await ask(path, { method: "DELETE" });
    throw error;
  }
  return made(await ask(`${path}/result`));
}

async function finished(path, signal, onState) {
  for (let lost = 0; ; await pause(POLL_MS, signal)) {
    let job;
    try {
      job = await (await ask(path, { signal })).json();
      lost = 0;
    } catch (error) {
      const passing = error instanceof Refusal && (error.status === 0 || error.status >= 500);
      if (!passing || ++lost >= LOST_POLLS) throw error;
      onState("lost");
      continue;
    }
    if (job.state === "done") return;
    if (job.state === "failed") throw new Refusal(job.kind === "refused" ? 400 : 500, job.error);
    if (job.state === "cancelled") throw new DOMException("the job was cancelled", "AbortError");
    onState(job.state);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function made(answer) {
  const [uri, digest] = answer.headers.get("X-Dropgen-Model").split("; digest=");
  return {
    bytes: await answer.arrayBuffer(),
    model: uri.replace("models:/", ""),
    version: answer.headers.get("X-Dropgen-Version"),
    digest,
    use: answer.headers.get("X-Dropgen-Use"),
    flags: JSON.parse(answer.headers.get("X-Dropgen-Flags")),
  };
}
