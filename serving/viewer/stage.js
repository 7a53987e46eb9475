// The canvas: an image, a mask over it, three planes. The only file that knows NiiVue.

import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "./vendor/niivue.js";
import { colourOf } from "./colours.js";

const VIEWS = {
  three: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL,
};
const OPTIONS = {
  dragAndDropEnabled: false, // the page takes what is dropped, for it is sent too
  crosshairColor: [1, 1, 1, 1], // no class has it
  crosshairWidth: 0.3,
  crosshairWidthUnit: "percent",
  fontColor: [0.8, 0.8, 0.8, 1],
  multiplanarShowRender: SHOW_RENDER.NEVER,
  loadingText: "",
  logLevel: "error",
};

/** Images are smoothed between voxels; a mask is not, for a label has no neighbour to mix with. */
class Screen extends Niivue {
  updateInterpolation(layer) {
    this.opts.isNearestInterpolation = this.volumes[layer].colormapLabel !== null;
    super.updateInterpolation(layer);
  }
}

export class Stage {
  #niivue = new Screen(OPTIONS);
  #mask = null;
  #opacity = 0.6;
  #asked = 0; // files that were asked for: one that takes long to read must not come up after the next

  /**
   * @param canvas Where to draw; throws where the browser has no WebGL2.
   * @param onMove Told of the crosshair: {planes: [{index, count}] sagittal, coronal, axial; mm: [x, y, z]; values}.
   */
  static async on(canvas, onMove) {
    const stage = new Stage();
    stage.#niivue.onLocationChange = (location) => onMove(stage.#location(location));
    await stage.#niivue.attachToCanvas(canvas);
    return stage;
  }

  /** Shows a NIfTI file and removes what was there; throws where it cannot be drawn. */
  async showImage(file, kind) {
    this.clear();
    const asked = this.#asked;
    const image = await NVImage.loadFromFile({ file: new File([file], `image.${kind}`), colormap: "gray" });
    if (asked !== this.#asked) return;
    this.#niivue.addVolume(image);
    this.#moved();
  }

  /** Shows a mask over the image, or alone where there is none. */
  async showMask(bytes, hidden) {
    const asked = this.#asked;
    const mask = await NVImage.loadFromFile({ file: new File([bytes], "mask.nii.gz") });
    if (asked !== this.#asked) return;
    if (this.#mask !== null) this.#niivue.removeVolume(this.#mask);
    this.#mask = mask;
    this.#paint(hidden);
    this.#niivue.addVolume(this.#mask);
    this.setOpacity(this.#opacity);
    this.#moved();
  }

  /** Hides the classes of these label values. */
  hide(hidden) {
    if (this.#mask === null) return;
    this.#paint(hidden);
    this.#niivue.updateGLVolume();
  }

  /** Of the mask, 0 to 1. */
  setOpacity(opacity) {
    this.#opacity = opacity;
    if (this.#mask !== null) this.#niivue.setOpacity(this.#niivue.volumes.indexOf(this.#mask), opacity);
  }

  setView(name) {
    this.#niivue.setSliceType(VIEWS[name]);
  }

  /** Moves one plane (0 sagittal, 1 coronal, 2 axial) to the slice `index`, from 0. */
  move(axis, index) {
    this.#niivue.scene.crosshairPos[axis] = (index + 0.5) / this.#counts()[axis];
    this.#niivue.drawScene();
    this.#moved();
  }

  clear() {
    this.#asked += 1;
    this.#mask = null;
    for (const volume of [...this.#niivue.volumes]) this.#niivue.removeVolume(volume);
  }

  get empty() {
    return this.#niivue.volumes.length === 0;
  }

  #paint(hidden) {
    // NiiVue lifts the lowest colours of a table by up to 2/256 of its length, hence two that no voxel has.
    const values = [...Array(258).keys()].map((i) => i - 2); // the mask is uint8
    const colours = values.map((value) => (value < 1 ? [0, 0, 0] : colourOf(value)));
    this.#mask.setColormapLabel({
      I: values,
      R: colours.map((one) => one[0]),
      G: colours.map((one) => one[1]),
      B: colours.map((one) => one[2]),
      A: values.map((value) => (value < 1 || hidden.has(value) ? 0 : 255)),
    });
  }

  #counts() {
    return this.#niivue.volumes[0].dimsRAS.slice(1, 4);
  }

  #moved() {
    this.#niivue.createOnLocationChange();
  }

  #location({ mm, values }) {
    const position = this.#niivue.scene.crosshairPos;
    const planes = this.#counts().map((count, axis) => ({
      index: Math.min(count - 1, Math.max(0, Math.floor(position[axis] * count))), count,
    }));
    const masked = this.#niivue.volumes.indexOf(this.#mask);
    return {
      planes,
      mm: [...mm].slice(0, 3),
      intensity: masked === 0 ? null : values[0].value,
      label: masked === -1 ? null : values[masked].value,
    };
  }
}
