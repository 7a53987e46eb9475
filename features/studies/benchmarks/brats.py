"""BraTS as the Medical Segmentation Decathlon publishes it (Task01): from T1w, T1w with contrast and T2w to FLAIR."""

from __future__ import annotations

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split, shuffled
from dropgen.manifest import read_json

SUBJECTS = 484
TRAIN, VAL = 340, 48
CHANNELS = ("FLAIR", "T1w", "T1wGAD", "T2")  # the order of the file's fourth axis, under the released code's names
PUBLISHED_CHANNELS = {"0": "flair", "1": "t1w", "2": "t1gd", "3": "t2w"}  # as dataset.json has it, in lower case
SEEN = ("T2", "T1w", "T1wGAD")
UNSEEN = ("FLAIR",)


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """Train takes three channels of a subject as three cases, validation and test its FLAIR alone."""
    pattern = r"(?P<id>BRATS_\d{3})\.nii\.gz"
    images, labels = archive.files("imagesTr", pattern), archive.files("labelsTr", pattern)
    archive.expect("subjects in imagesTr", len(images), SUBJECTS)
    archive.expect_pairs(images, labels)
    description = read_json(archive.raw / "dataset.json")
    if isinstance(description, dict) and (said := description.get("modality")) is not None:
        found = {key: str(name).lower() for key, name in said.items()} if isinstance(said, dict) else said
        if found != PUBLISHED_CHANNELS:
            archive.problems.append(f"dataset.json: expected the channels {PUBLISHED_CHANNELS}, found {said}")
    items = []
    for position, subject in enumerate(shuffled(sorted(set(images) & set(labels)))):
        split: Split = "train" if position < TRAIN else "val" if position < TRAIN + VAL else "test"
        for name in SEEN if split == "train" else UNSEEN:
            items.append(
                Item(
                    id=f"{subject}_{name}",
                    subject=subject,
                    domain=name,
                    modality="mr",
                    split=split,
                    image=images[subject],
                    label=labels[subject],
                    channel=CHANNELS.index(name),
                )
            )
    return items


BRATS = Benchmark(
    name="brats",
    classes=("background", "edema", "non-enhancing tumour", "enhancing tumour"),
    spacing=(1.0, 1.0, 1.0),
    crop=(128, 128, 128),
    intensity="minmax",
    orientation_augmentation=True,
    layout="the folder Task01_BrainTumour of the Medical Segmentation Decathlon: 484 volumes of four channels in "
    "imagesTr/ (BRATS_<3 digits>.nii.gz), labels of the same names in labelsTr/",
    find=find,
)
