// Which model, and which modality where it asks for one.

import { ask } from "./api.js";

const find = (id) => document.getElementById(id);

export class Models {
  /** @param onChange Told when the choice is ready, or cannot be told: onChange(refusal or null). */
  constructor(onChange) {
    this.onChange = onChange;
    find("model").addEventListener("change", () => this.#show());
  }

  /** Asks the service; throws a Refusal. */
  async load() {
    const [listed, health] = await Promise.all([ask("v1/models"), ask("healthz")]);
    const { models } = await listed.json();
    const chosen = (await health.json()).model.uri.replace("models:/", "");
    find("model").replaceChildren(...Object.entries(models).map(([name, model]) => group(name, model)));
    find("model").value = chosen;
    find("model").disabled = false;
    await this.#show();
  }

  /** `name@alias` or `name/version`. */
  get model() {
    return find("model").value;
  }

  /** Null where none is needed; "" where one is needed and not yet chosen. */
  get modality() {
    return find("modality-choice").hidden ? null : find("modality").value;
  }

  async #show() {
    const model = this.model;
    try {
      const shown = await card(model);
      if (model !== this.model) return; // another was chosen meanwhile
      find("modality-choice").hidden = shown.modalities.length === 0;
      find("modality").replaceChildren(new Option("choose", ""), ...shown.modalities.map((name) => new Option(name)));
      find("model-classes").textContent = shown.classes.slice(1).join(", ");
      find("model-limits").replaceChildren(...(shown.card?.limits ?? []).map(item));
      find("about").hidden = false;
      this.onChange(null);
    } catch (error) {
      this.onChange(error);
    }
  }
}

/** What the service tells of `name@alias` or `name/version`: {classes, values, modalities, card, ...}. */
async function card(model) {
  return (await ask(`v1/models/${model}`)).json();
}

/** What a version calls the values of its masks. */
export async function classesOf(name, version) {
  return (await card(`${name}/${version}`)).values;
}

function group(name, { aliases, versions }) {
  const options = [
    ...Object.entries(aliases).map(([alias, version]) => new Option(`${name}@${alias} (version ${version})`, `${name}@${alias}`)),
    ...[...versions].reverse().map((version) => new Option(`${name}, version ${version}`, `${name}/${version}`)),
  ];
  const parent = Object.assign(document.createElement("optgroup"), { label: name });
  parent.append(...options);
  return parent;
}

function item(text) {
  return Object.assign(document.createElement("li"), { textContent: text });
}
