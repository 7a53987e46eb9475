"""HVSMR-2.0, hearts with congenital disease: from mildly and moderately to severely abnormal anatomy."""

from __future__ import annotations

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split, shuffled

SUBJECTS = 60
# The released code's list. That it is everybody mild or moderate is inferred: the owners count 12, 11 and 37 severe.
TRAIN = (0, 1, 2, 5, 6, 8, 10, 11, 13, 18, 26, 27, 7, 14, 15, 19, 23, 24, 25, 29, 48, 17, 12)
VAL = 18
IMAGE = r"(?P<id>pat\d+)_cropped\.nii\.gz"
LABEL = r"(?P<id>pat\d+)_cropped_seg\.nii\.gz"
BESIDE = r"pat\d+_cropped_seg(?:_endpoints)?\.nii\.gz"


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """Train is a fixed list; the others are shuffled in the order of their file names, where pat10 precedes pat1."""
    images = archive.files("cropped", IMAGE, others=(BESIDE,))
    if (archive.raw / "labs").is_dir():  # the released code's arrangement
        labels = archive.files("labs", r"(?P<id>pat\d+)_labels\.nii\.gz")
    else:
        labels = archive.files("cropped", LABEL, others=(IMAGE, BESIDE))
    archive.expect("people in cropped", len(images), SUBJECTS)
    archive.expect_pairs(images, labels)
    archive.problems += [f"pat{i} is missing" for i in range(SUBJECTS) if f"pat{i}" not in images]
    archive.problems += [f"{name} is unknown" for name in images if int(name[3:]) >= SUBJECTS]
    people = [name for name in images if name in labels]  # by file name
    fixed = {f"pat{number}" for number in TRAIN}

    def items(names: list[str], domain: str, split: Split) -> list[Item]:
        return [Item(f"{name}_cropped", name, domain, "mr", split, images[name], labels[name]) for name in names]

    severe = shuffled(name for name in people if name not in fixed)
    return [
        *items([name for name in people if name in fixed], "mild or moderate", "train"),
        *items(severe[:VAL], "severe", "val"),
        *items(severe[VAL:], "severe", "test"),
    ]


HVSMR = Benchmark(
    name="hvsmr",
    classes=(
        "background", "left ventricle", "right ventricle", "left atrium", "right atrium", "aorta", "pulmonary artery",
        "superior vena cava", "inferior vena cava",
    ),
    spacing=(0.77, 0.72, 0.72),
    crop=(128, 160, 128),
    intensity="minmax",
    orientation_augmentation=True,  # as the released code has it, although left and right chambers are classes
    layout="cropped/ with pat<number>_cropped.nii.gz of 60 people, pat0 to pat59, and their labels beside them "
    "(pat<number>_cropped_seg.nii.gz) or in labs/ (pat<number>_labels.nii.gz)",
    find=find,
)  # fmt: skip
