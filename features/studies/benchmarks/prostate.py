"""Prostate MR of six sites (the SAML collection): a clinical site is a domain."""

from __future__ import annotations

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split

SITES: dict[str, tuple[Split, int]] = {  # split, and how many people the owners count
    "RUNMC": ("train", 30), "I2CVB": ("train", 19), "UCL": ("val", 13), "HK": ("val", 12), "BIDMC": ("test", 12),
    "BMC": ("test", 30),
}  # fmt: skip
IMAGE = r"(?i)(?P<id>Case\d+)\.nii(?:\.gz)?"
LABEL = r"(?i)(?P<id>Case\d+)_segmentation\.nii(?:\.gz)?"


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """A split is a set of sites; nothing is shuffled.

    A case's id is `<SITE>_Case<number>`: numbers repeat from site to site.
    """
    if not archive.raw.is_dir():
        archive.problems.append("the folder is missing")
        return []
    folders = {path.name for path in archive.raw.iterdir() if path.is_dir() and path.name[0] not in "._"}
    archive.problems += [
        f"{name}/ is an unknown site; known are {', '.join(SITES)}" for name in sorted(folders - set(SITES))
    ]
    items = []
    for site, (split, expected) in SITES.items():
        images = archive.files(site, IMAGE, others=(LABEL,))
        labels = archive.files(site, LABEL, others=(IMAGE,)) if site in folders else {}
        archive.expect_pairs(images, labels)
        if site in folders and len(images) != expected:
            archive.warnings.append(f"{site}: expected {expected} people, found {len(images)}")
        items += [
            Item(f"{site}_{name}", f"{site}_{name}", site, "mr", split, images[name], labels[name])
            for name in images
            if name in labels
        ]
    return items


def renumber(value: int) -> int:
    """Some sites label zones of the gland; here all of it is one class."""
    return int(value != 0)


PROSTATE = Benchmark(
    name="prostate",
    classes=("background", "prostate"),
    # The released code says 0.125 mm along z, where its crop would span 8 mm; a slice of I2CVB measures 1.25 mm.
    spacing=(0.51, 0.52, 1.25),
    crop=(256, 256, 64),
    intensity="minmax",
    orientation_augmentation=True,
    layout="one folder per site (RUNMC, BMC, I2CVB, UCL, BIDMC, HK) with Case<number>.nii.gz and "
    "Case<number>_segmentation.nii.gz",
    find=find,
    renumber=renumber,
)
