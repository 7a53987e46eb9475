// The place where a refusal is told: what is wrong, what to do, and a button that does it.

import { Refusal } from "./api.js";
import { adviceOn } from "./advice.js";

const LABELS = { job: "Send it as a job", retry: "Try again" };
const find = (id) => document.getElementById(id);

let timer = null;

export function clearError() {
  clearInterval(timer);
  find("error").hidden = true;
}

/** @param act Called with "job" or "retry" when the button is pressed. */
export function showError(error, asJob, act) {
  clearError();
  const advice = error instanceof Refusal ? adviceOn(error, asJob) : { text: "" };
  const button = find("error-action");
  find("error-sentence").textContent = sentence(error.message);
  find("error-advice").textContent = advice.text;
  button.hidden = !(advice.action in LABELS);
  button.textContent = LABELS[advice.action];
  button.disabled = false;
  button.onclick = () => act(advice.action);
  if (advice.seconds) wait(button, advice.seconds);
  find("error").hidden = false;
  if (advice.action === "token") find("token").focus();
}

/** The service's sentences begin small and end without a dot. */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1).replace(/[.]?$/, ".");
}

function wait(button, seconds) {
  const label = button.textContent;
  button.disabled = true;
  button.textContent = `${label} in ${seconds} s`;
  timer = setInterval(() => {
    seconds -= 1;
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? `${label} in ${seconds} s` : label;
    if (seconds <= 0) clearInterval(timer);
  }, 1000);
}
