"""nnU-Net's command lines: where it works, with which of its trainers, and what each step is called with."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dropgen.platform.external.step import Step
from dropgen.platform.methods.checks import require_choice

ITERATIONS = 250  # of one epoch
EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, 2000, 4000, 8000)  # nnU-Net has a trainer for each
TRAINERS = {1: "nnUNetTrainer_1epoch", 1000: "nnUNetTrainer"}
CONFIGURATION = "3d_fullres"
AUGMENTERS = "nnUNet_n_proc_DA"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class NnUNet:
    """The hyperparameters of `{name: nnunet}`; everything else is nnU-Net's own choice.

    Attributes:
        epochs: Length of training, one of `EPOCHS`; `training.steps` does not apply.
    """

    epochs: int = 1000
    name: ClassVar[str] = "nnunet"

    def __post_init__(self) -> None:
        require_choice(self.name, "epochs", self.epochs, EPOCHS)

    @property
    def trainer(self) -> str:
        """The name of nnU-Net's trainer of this length."""
        return TRAINERS.get(self.epochs, f"nnUNetTrainer_{self.epochs}epochs")

    @property
    def steps(self) -> int:
        """Training iterations."""
        return ITERATIONS * self.epochs


@dataclass(frozen=True)
class Site:
    """Where nnU-Net works, and with what.

    Attributes:
        data: Raw and preprocessed data, which all trials of an experiment share.
        trial: One trial's checkpoints, predictions and scores.
        device: "cpu" or "cuda".
        workers: Processes for preprocessing and prediction; on a CPU also for augmentation, where the environment
            sets no `nnUNet_n_proc_DA`.
    """

    data: Path
    trial: Path
    device: str
    workers: int

    @property
    def planning(self) -> Path:
        """The raw data set of the training cases alone."""
        return self.data / "planning"

    @property
    def raw(self) -> Path:
        """The raw data set of training and validation cases."""
        return self.data / "raw"

    @property
    def preprocessed(self) -> Path:
        """What nnU-Net makes of the data."""
        return self.data / "preprocessed"

    def step(self, name: str, command: str, *arguments: str, raw: Path | None = None) -> Step:
        """One of nnU-Net's commands; `raw` is the data that it may see."""
        environment = {
            "nnUNet_raw": str(raw or self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.trial / "results"),
        }
        if self.device == "cpu":
            environment[AUGMENTERS] = os.environ.get(AUGMENTERS, str(self.workers))
        return Step(name, (program(command) or command, *arguments), environment)


def program(command: str) -> str | None:
    """The path of one of nnU-Net's commands, from the environment of this Python before any other."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return shutil.which(command, path=os.pathsep.join(folders))


def preparation_steps(site: Site) -> tuple[Step, ...]:
    """Fingerprint and plans from training cases, then the preprocessed data of training and validation cases."""
    workers = str(site.workers)
    return (
        site.step("fingerprint", "nnUNetv2_extract_fingerprint", "-d", "1", "-np", workers, raw=site.planning),
        site.step("plan", "nnUNetv2_plan_experiment", "-d", "1", raw=site.planning),
        site.step("preprocess", "nnUNetv2_preprocess", "-d", "1", "-c", CONFIGURATION, "-np", workers),
    )


def training_step(site: Site, method: NnUNet) -> Step:
    """Fold 0, continued where an earlier attempt left a checkpoint."""
    fold = next(site.trial.glob(f"results/*/{method.trainer}__*/fold_0"), None)
    resume = ("--c",) if fold and any((fold / name).exists() for name in CHECKPOINTS) else ()
    arguments = ("1", CONFIGURATION, "0", "-tr", method.trainer, "-device", site.device, *resume)
    return site.step("train", "nnUNetv2_train", *arguments)


def prediction_step(site: Site, method: NnUNet, images: Path, masks: Path, name: str) -> Step:
    """The best checkpoint on a folder of images, without mirroring."""
    workers = str(site.workers)
    return site.step(
        name, "nnUNetv2_predict", "-i", str(images), "-o", str(masks), "-d", "1", "-c", CONFIGURATION, "-f", "0",
        "-tr", method.trainer, "-chk", "checkpoint_best.pth", "--disable_tta", "-npp", workers, "-nps", workers,
        "-device", site.device,
    )  # fmt: skip
