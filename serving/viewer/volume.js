// What a chosen file is, by its first bytes: names lie.

const MAGICS = [
  { start: [0x50, 0x4b, 0x03, 0x04], kind: "zip", type: "application/zip" },
  { start: [0x1f, 0x8b], kind: "nii.gz", type: "application/octet-stream" },
];
const NIFTI = { kind: "nii", type: "application/octet-stream" };

/** {file, kind: "nii" | "nii.gz" | "zip", type}; what is none of them is sent as NIfTI, for the service to judge. */
export async function volumeOf(file) {
  const start = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const { kind, type } = MAGICS.find((magic) => magic.start.every((byte, i) => byte === start[i])) ?? NIFTI;
  return { file, kind, type };
}

/** `scan.nii.gz` -> `scan-mask.nii.gz`: the mask is always packed NIfTI. */
export function maskName(name) {
  return `${name.replace(/(\.nii(\.gz)?|\.zip)$/i, "")}-mask.nii.gz`;
}

export function sizeText(bytes) {
  return bytes < 2 ** 20 ? `${(bytes / 2 ** 10).toFixed(0)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
