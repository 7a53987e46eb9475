// The classes of a mask: a box to show or hide each, with its colour and name.

import { colourOf } from "./colours.js";

/**
 * @param parent Emptied first.
 * @param classes Names; the index is the label value, 0 is background.
 * @param onChange Told the set of hidden label values.
 */
export function showLegend(parent, classes, onChange) {
  const boxes = classes.slice(1).map((name, i) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: i + 1 });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${colourOf(i + 1).join(" ")})`;
    const label = Object.assign(document.createElement("label"), { className: "check" });
    label.append(box, swatch, name);
    return { box, label };
  });
  const hidden = () => new Set(boxes.filter(({ box }) => !box.checked).map(({ box }) => Number(box.value)));
  for (const { box } of boxes) box.addEventListener("change", () => onChange(hidden()));
  parent.replaceChildren(...boxes.map(({ label }) => label));
}
