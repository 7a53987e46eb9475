// The page: which part tells which.

import { clearError, showError } from "./errors.js";
import { takeFiles } from "./files.js";
import { showLegend } from "./legend.js";
import { classesOf, Models } from "./models.js";
import { segment } from "./send.js";
import { Stage } from "./stage.js";
import { forgetToken, storedToken, storeToken } from "./token.js";
import { maskName, sizeText, volumeOf } from "./volume.js";

const JOB_BYTES = 32 * 2 ** 20; // from here on a job is proposed: on a CPU such a volume takes minutes
const STATES = {
  sending: "Sending the volume and waiting for its mask.",
  accepted: "The job waits for its turn.",
  running: "The service works on the job.",
  lost: "The service does not answer; the job goes on there. Asking again.",
};
const find = (id) => document.getElementById(id);

const models = new Models((refusal) => (refusal ? tell(refusal) : ready()));
let stage = null;
let volume = null;
let classes = [];
let running = null; // the AbortController of what is being segmented
let download = null;

function tell(error) {
  if (error.status === 401) {
    find("access").hidden = false;
    find("known").hidden = true;
  }
  showError(error, find("as-job").checked, (action) => {
    if (action === "job") find("as-job").checked = true;
    if (volume === null || find("model").disabled) connect();
    else submit();
  });
}

function ready() {
  const lacksModality = models.modality === "" && volume?.kind !== "zip"; // a series has it in a tag
  find("segment").disabled = running !== null || volume === null || find("model").disabled || lacksModality;
}

async function connect() {
  clearError();
  try {
    await models.load();
    find("access").hidden = true;
    find("known").hidden = storedToken() === null;
  } catch (error) {
    tell(error);
  }
  ready();
}

async function take(file) {
  clearError();
  running?.abort();
  volume = await volumeOf(file);
  find("result").hidden = true;
  find("as-job").checked = file.size >= JOB_BYTES;
  say(`${file.name}, ${sizeText(file.size)}`);
  stage?.clear();
  if (volume.kind === "zip") {
    find("empty").textContent = "The slices of a DICOM zip are not drawn here; its mask will be shown alone.";
  } else if (stage !== null) {
    find("empty").textContent = "Reading the volume.";
    try {
      await stage.showImage(file, volume.kind);
    } catch {
      if (volume.file !== file) return; // another was taken meanwhile
      stage.clear();
      find("empty").textContent = "This browser cannot draw the file. It can be sent all the same: the service says what is wrong with it.";
    }
  }
  arrange();
  ready();
}

async function submit() {
  clearError();
  const [seen, controller, began] = [volume, new AbortController(), performance.now()];
  const asJob = find("as-job").checked;
  const clock = setInterval(() => (find("clock").textContent = `${Math.round((performance.now() - began) / 1000)} s`), 1000);
  running = controller;
  find("cancel").hidden = false;
  ready();
  try {
    const order = { body: seen.file, type: seen.type, model: models.model, modality: models.modality || null, asJob };
    const made = await segment(order, controller.signal, (state) => say(STATES[state]));
    const names = await classesOf(made.model.split(/[@/]/)[0], made.version);
    controller.signal.throwIfAborted();
    await present(made, names, seen);
    say("The mask is ready.");
  } catch (error) {
    if (seen === volume) say(error.name === "AbortError" ? "Cancelled." : "");
    if (error.name !== "AbortError") tell(error);
  } finally {
    clearInterval(clock);
    if (running === controller) {
      running = null;
      find("cancel").hidden = true;
      find("clock").textContent = "";
    }
    ready();
  }
}

async function present(made, names, seen) {
  classes = names;
  find("made-model").textContent = made.model;
  find("made-version").textContent = made.version;
  find("made-digest").textContent = made.digest;
  find("made-use").textContent = made.use;
  const flags = made.flags.length ? made.flags.map((flag) => `Look at this: ${flag}.`) : ["The service flags nothing about this mask."];
  find("flags").replaceChildren(...flags.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  find("flags").classList.toggle("odd", made.flags.length > 0);
  showLegend(find("classes"), classes, (hidden) => stage?.hide(hidden));
  if (download !== null) URL.revokeObjectURL(download);
  download = URL.createObjectURL(new Blob([made.bytes], { type: "application/gzip" }));
  Object.assign(find("download"), { href: download, download: maskName(seen.file.name) });
  await stage?.showMask(made.bytes, new Set());
  find("result").hidden = false;
  arrange();
}

function say(text) {
  if (find("status").textContent !== text) find("status").textContent = text; // a reader says each change aloud
}

function arrange() {
  find("planes").hidden = stage === null || stage.empty;
  find("empty").hidden = stage !== null && !stage.empty;
  if (find("planes").hidden) find("here").textContent = "";
}

function moved({ planes, mm, intensity, label }) {
  for (const slider of document.querySelectorAll("#planes input")) {
    const { index, count } = planes[slider.dataset.axis];
    Object.assign(slider, { max: count, value: index + 1 });
    slider.nextElementSibling.textContent = `${index + 1} of ${count}`;
  }
  const at = `At ${mm.map((value) => value.toFixed(1)).join(", ")} mm (RAS)`;
  const read = intensity === null ? "" : `, intensity ${Number(intensity.toPrecision(5))}`;
  find("here").textContent = `${at}${read}${label === null ? "" : `, ${classes[label] ?? label}`}`;
}

find("access").addEventListener("submit", (event) => {
  event.preventDefault();
  storeToken(find("token").value);
  find("token").value = "";
  connect();
});
find("forget").addEventListener("click", () => {
  forgetToken();
  location.reload();
});
find("request").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
find("cancel").addEventListener("click", () => running?.abort());
find("modality").addEventListener("change", ready);
find("opacity").addEventListener("input", (event) => stage?.setOpacity(event.target.value / 100));
find("view").addEventListener("change", (event) => stage?.setView(event.target.value));
for (const slider of document.querySelectorAll("#planes input")) {
  slider.addEventListener("input", () => stage?.move(Number(slider.dataset.axis), slider.value - 1));
}
takeFiles(find("file"), document.body, take, () => tell(new Error("several files were dropped; drop one volume, or one zip of a DICOM series")));

try {
  stage = await Stage.on(find("canvas"), moved);
} catch {
  find("empty").textContent = "This browser has no WebGL2 and cannot draw volumes; masks can still be made and downloaded.";
}
await connect();
