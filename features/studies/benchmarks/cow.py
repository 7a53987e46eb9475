"""TopCoW 2024, vessels of the circle of Willis: from CT to MR angiography, no person in both."""

from __future__ import annotations

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split, shuffled

SUBJECTS = 125
TRAIN, VAL = 75, 20
LAST_SHARED, THIRD_A2, THIRD_A2_CLASS = 12, 15, 13


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """Everybody was scanned twice: train takes the CT of the first 75 people, validation and test the MR of others."""
    images = archive.files("imagesTr", r"topcow_(?P<id>(?:ct|mr)_\d{3})_0000\.nii\.gz")
    labels = archive.files("cow_seg_labelsTr", r"topcow_(?P<id>(?:ct|mr)_\d{3})\.nii\.gz")
    archive.expect_pairs(images, labels)
    people = {kind: {name[3:] for name in images if name in labels and name[:2] == kind} for kind in ("ct", "mr")}
    archive.expect("people with a labelled MR", len(people["mr"]), SUBJECTS)
    archive.problems += [f"topcow_mr_{one} has no topcow_ct_{one}" for one in sorted(people["mr"] - people["ct"])]
    archive.problems += [f"topcow_ct_{one} has no topcow_mr_{one}" for one in sorted(people["ct"] - people["mr"])]
    items = []
    for position, person in enumerate(shuffled(sorted(people["mr"] & people["ct"], key=int))):
        split: Split = "train" if position < TRAIN else "val" if position < TRAIN + VAL else "test"
        kind = "ct" if split == "train" else "mr"
        name = f"{kind}_{person}"
        items.append(Item(f"topcow_{name}", f"topcow_{person}", kind, kind, split, images[name], labels[name]))
    return items


def renumber(value: int) -> int | None:
    """The challenge's values have a gap: 1 to 12 stay, 15 (the third A2) becomes 13."""
    return value if 0 <= value <= LAST_SHARED else THIRD_A2_CLASS if value == THIRD_A2 else None


COW = Benchmark(
    name="cow",
    classes=(
        "background", "BA", "R-PCA", "L-PCA", "R-ICA", "R-MCA", "L-ICA", "L-MCA", "R-Pcom", "L-Pcom", "Acom", "R-ACA",
        "L-ACA", "3rd-A2",
    ),
    spacing=(0.3, 0.3, 0.6),
    crop=(192, 160, 128),
    intensity={"ct": "hu", "mr": "minmax"},
    orientation_augmentation=False,
    layout="the folder TopCoW2024_Data_Release: topcow_ct_<3 digits>_0000.nii.gz and topcow_mr_<3 digits>_0000.nii.gz "
    "of 125 people in imagesTr/, labels without _0000 in cow_seg_labelsTr/",
    find=find,
    renumber=renumber,
)  # fmt: skip
