// One colour per class, by label value; the first are those of Okabe and Ito, which the colour-blind tell apart.

const FIRST = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167],
];

/** [r, g, b] of 0 to 255 for a label value from 1. */
export function colourOf(value) {
  return FIRST[value - 1] ?? ofHue((value * 137.508) % 360, value % 2 ? 0.5 : 0.65);
}

function ofHue(hue, lightness) {
  const chroma = 0.7 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}
