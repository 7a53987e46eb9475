"""Stand-ins for nnU-Net's commands: they record how they are called and leave the files that the real ones leave."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = """#!{python}
import json, os, sys
from pathlib import Path

name, home = Path(sys.argv[0]).name, Path({home!r})
given = dict(zip(sys.argv, sys.argv[1:]))
raw = Path(os.environ["nnUNet_raw"])
call = {{
    "program": name,
    "arguments": sys.argv[1:],
    "sees": sorted(path.name.removesuffix("_0000.nii.gz") for path in raw.glob("*/imagesTr/*")),
    "split": json.loads((Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_study/splits_final.json").read_text()),
}}
with (home / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
if name == "nnUNetv2_train":
    results = Path(os.environ["nnUNet_results"]) / "Dataset001_study"
    fold = results / (given["-tr"] + "__nnUNetPlans__3d_fullres") / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    for line in ("Epoch 0 ", "train_loss -0.25 ", "Pseudo dice [np.float32(0.5), np.float32(0.25)] ",
                 "Epoch time: 2.5 s ", "Yayy! New best EMA pseudo Dice: 0.375 "):
        print("2026-01-01 00:00:00.000000:", line)
    (fold / "checkpoint_best.pth").touch()
if (home / ("break-" + name)).exists():
    print("broken on purpose")
    sys.exit(1)
if name == "nnUNetv2_predict":
    import nibabel, numpy
    Path(given["-o"]).mkdir(parents=True, exist_ok=True)
    for path in Path(given["-i"]).iterdir():
        image = nibabel.load(path)
        voxels = image.get_fdata()
        mask = (voxels > 0.6 * voxels.max()).astype(numpy.uint8)
        target = Path(given["-o"]) / path.name.replace("_0000", "")
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), target)
"""

PROGRAMS = ("extract_fingerprint", "plan_experiment", "preprocess", "train", "predict")


@dataclass(frozen=True)
class StandIn:
    """A folder of executable stand-ins."""

    folder: Path

    @classmethod
    def install(cls, folder: Path) -> StandIn:
        """Writes them."""
        folder.mkdir()
        for name in PROGRAMS:
            script = folder / f"nnUNetv2_{name}"
            script.write_text(SCRIPT.format(python=sys.executable, home=str(folder)))
            script.chmod(0o755)
        return cls(folder)

    def program(self, command: str) -> str | None:
        """Takes the place of `dropgen.platform.external.commands.program`."""
        return str(self.folder / command)

    def calls(self) -> list[dict[str, Any]]:
        """How they were called: `program, arguments, sees` (cases in `imagesTr`) and `split`."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
