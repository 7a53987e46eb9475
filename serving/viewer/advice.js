// What to do about a refusal. The sentence of what is wrong is the service's own.

/** Text and, where the page can do it, an action: "token", "job" or "retry" (after `seconds`). */
export function adviceOn(refusal, asJob) {
  switch (refusal.status) {
    case 0:
      return {
        text: "See that dropgen serve is running and reachable, then try again. A volume larger than the service takes can break the connection too.",
        action: "retry",
      };
    case 401:
      return { text: "Enter the token above: dropgen serve printed it, and keeps it in service/token below its root.", action: "token" };
    case 403:
      return { text: "Open this page at http://127.0.0.1 on the machine of the service." };
    case 404:
      return { text: "Reload this page to see the models and jobs that there are." };
    case 408:
    case 507:
      return { text: "Try again later.", action: "retry" };
    case 413:
      return asJob ? { text: "Crop or resample the volume." } : { text: "A job takes larger volumes; else crop or resample it.", action: "job" };
    case 429: {
      const seconds = refusal.retrySeconds ?? 30;
      return { text: `Come back in ${seconds} s.`, action: "retry", seconds };
    }
    case 504:
      return asJob ? { text: "Try again.", action: "retry" } : { text: "A job has as long as it needs.", action: "job" };
    case 502:
    case 503:
      return { text: "It is starting, stopping or busy: try again in a moment.", action: "retry" };
    default:
      return { text: refusal.status >= 500 ? "Try again; the service's log says more." : "" };
  }
}
