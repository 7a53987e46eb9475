"""AMOS 2022: from abdominal CT to MR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split, shuffled

INCLUDE_VA_CT = "include_va_ct"
LAST_CT = 500  # ids up to here are CT, those above are MR
COUNTS = {"Tr": (200, 40), "Va": (100, 20)}  # CT, MR


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """Train is the CT of imagesTr, the labelled MR of both folders is cut in half for validation and test.

    The released code halves a folder whose content it does not list; that it is all labelled MR is inferred.
    """
    pattern = r"(?P<id>amos_\d{4})\.nii\.gz"
    ct: list[Item] = []
    mr: dict[str, tuple[Path, Path]] = {}
    for part, expected in COUNTS.items():
        images, labels = archive.files(f"images{part}", pattern), archive.files(f"labels{part}", pattern)
        archive.expect_pairs(images, labels)
        paired = {name: (images[name], labels[name]) for name in images if name in labels}
        of_ct = [name for name in paired if int(name[-4:]) <= LAST_CT]
        archive.expect(f"CT in images{part} (ids up to {LAST_CT:04})", len(of_ct), expected[0])
        archive.expect(f"MR in images{part} (ids above {LAST_CT:04})", len(paired) - len(of_ct), expected[1])
        if part == "Tr" or INCLUDE_VA_CT in flags:
            ct += [_item(name, paired, "ct", "train") for name in of_ct]
        mr |= {name: paired[name] for name in paired if name not in of_ct}
    held_out = shuffled(sorted(mr))
    half = len(held_out) // 2
    return [
        *sorted(ct, key=lambda item: item.id),
        *(_item(name, mr, "mr", "val") for name in held_out[:half]),
        *(_item(name, mr, "mr", "test") for name in held_out[half:]),
    ]


def _item(name: str, paired: Mapping[str, tuple[Path, Path]], modality: str, split: Split) -> Item:
    image, label = paired[name]
    return Item(name, name, modality, modality, split, image, label)


AMOS = Benchmark(
    name="amos",
    classes=(
        "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
        "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
        "prostate or uterus",
    ),
    spacing=(1.0, 1.0, 1.5),
    crop=(192, 192, 128),
    intensity={"ct": "hu", "mr": "minmax"},
    orientation_augmentation=False,
    layout="the folder amos22: imagesTr/ and labelsTr/ with 200 CT and 40 MR, imagesVa/ and labelsVa/ with 100 CT and "
    "20 MR (amos_<4 digits>.nii.gz)",
    find=find,
    flags=(INCLUDE_VA_CT,),
)  # fmt: skip
