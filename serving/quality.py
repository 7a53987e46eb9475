"""What is told of a mask beside its voxels: volumes, fragments, flags, how sure the model is, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dropgen.features.studies.volume import Volume, write_volume
from dropgen.platform.evaluation.preview import preview
from dropgen.platform.evaluation.quality import ClassRecord, find_classes, flags
from dropgen.platform.evaluation.uncertainty import Uncertainty

PREVIEW = ".png"
ENTROPY, DISAGREEMENT = ".entropy.nii.gz", ".disagreement.nii.gz"
DICOM_SEG = ".seg.dcm"
BESIDE = (PREVIEW, ENTROPY, DISAGREEMENT, DICOM_SEG)  # what may stand beside `<case>.nii.gz`


@dataclass(frozen=True)
class Segmented:
    """One scan with its mask.

    Attributes:
        image: The scan, of several channels the first: what its picture shows.
        mask: uint8 on its grid.
        uncertainty: Where it was asked for.
        slices: The DICOM files that the scan was read from, in the order of its third axis; none for NIfTI.
        in_model: When it came into the model and when it left, seconds of the machine's monotonic clock; None where
            nobody looked.
        flags: As the service that made the mask says them; None where they are this process's to find.
    """

    image: Volume
    mask: Volume
    uncertainty: Uncertainty | None = None
    slices: tuple[Path, ...] = ()
    in_model: tuple[float, float] | None = None
    flags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Findings:
    """The columns of one mask in the table of a folder.

    Attributes:
        voxels: Per class, without background.
        ml: Likewise.
        fragments: Likewise: connected components, over corners.
        flags: What a person should look at, one phrase each; none where the mask looks like those of the training.
        entropy: Mean over the foreground, 0 (sure) to 1; None unless asked for.
        disagreement: Between image alone and features alone, 0 to 1; None unless asked for and defined.
    """

    voxels: Mapping[str, int]
    ml: Mapping[str, float]
    fragments: Mapping[str, int]
    flags: Sequence[str]
    entropy: float | None = None
    disagreement: float | None = None


def find(
    segmented: Segmented,
    classes: Sequence[str],
    records: Mapping[str, ClassRecord],
    regions: Sequence[Sequence[int]] = (),
) -> Findings:
    """Looks at a mask.

    Args:
        segmented: The mask with its scan.
        classes: Class names with background.
        records: What the model's training labels say of each class; none where another process has them.
        regions: The label values that each class but background is made of, where they are not its place.
    """
    voxel_ml = abs(float(np.linalg.det(segmented.mask.affine[:3, :3]))) / 1000
    found = find_classes(segmented.mask.array, voxel_ml, classes, regions)
    uncertainty = segmented.uncertainty
    return Findings(
        voxels={name: round(one.ml / voxel_ml) for name, one in found.items()},
        ml={name: round(one.ml, 3) for name, one in found.items()},
        fragments={name: one.fragments for name, one in found.items()},
        flags=flags(found, records) if segmented.flags is None else segmented.flags,
        entropy=None if uncertainty is None else _rounded(uncertainty.entropy),
        disagreement=None if uncertainty is None else _rounded(uncertainty.disagreement),
    )


def write_beside(
    mask: Path, segmented: Segmented, findings: Findings, classes: Sequence[str], title: str | None = None
) -> None:
    """Writes the preview of a mask `<case>.nii.gz`, and its maps where there are any.

    Args:
        mask: Where the mask is, or will be.
        segmented: The mask with its scan.
        findings: What `find` said of it.
        classes: Class names with background.
        title: Of the preview; the case where None.

    Raises:
        OSError: A file cannot be written.
    """
    case = mask.name.removesuffix(".nii.gz")
    figure = preview(segmented.image, segmented.mask.array, classes, title or case, findings.flags)
    partial = mask.with_name(f".{case}{PREVIEW}.partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(mask.with_name(f"{case}{PREVIEW}"))
    if (uncertainty := segmented.uncertainty) is not None:
        maps = {ENTROPY: uncertainty.entropy_map, DISAGREEMENT: uncertainty.disagreement_map}
        for suffix, array in maps.items():
            if array is not None:
                write_volume(mask.with_name(f"{case}{suffix}"), array, segmented.mask.affine)


def remove_beside(mask: Path) -> None:
    """Removes what stands beside a mask."""
    case = mask.name.removesuffix(".nii.gz")
    for suffix in BESIDE:
        mask.with_name(f"{case}{suffix}").unlink(missing_ok=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
