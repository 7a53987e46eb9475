"""`dropgen segment` on a DICOMweb archive: its series as cases, and their DICOM-SEG back into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dropgen import console
from dropgen.errors import ConfigError, TooLargeError, VolumeError
from dropgen.features.studies.dicom import CLASSES
from dropgen.serving.cases import Cases, find_cases
from dropgen.serving.dicomweb import Archive
from dropgen.serving.journal import Journal
from dropgen.serving.ledger import Outcome
from dropgen.serving.quality import DICOM_SEG

SERIES_FOLDER = "series"  # in the output folder: what was fetched


def fetch_cases(archive: Archive, target: Path, derived: bool) -> Cases:
    """Fetches what the search finds into `<target>/series/<SeriesInstanceUID>`, and lists it like any DICOM tree.

    Raises:
        ConfigError: Nothing to segment was found.
        ServiceError: The archive cannot be reached, or refuses.
        ResourceError: The series cannot be written.
    """
    folder = target / SERIES_FOLDER
    others: list[Outcome] = []
    fetched: set[str] = set()
    found = archive.find()
    with console.progress("series") as bars:
        bar = bars.add_task("fetch", total=len(found), note="")
        for remote in found:
            bars.update(bar, note=remote.uid)
            if remote.modality and remote.modality not in CLASSES.values():
                reason = f"it is {remote.modality}, no CT or MR"
                others.append(Outcome(remote.uid, remote.uid, "left out", reason))
            else:
                try:
                    archive.fetch(remote, folder / remote.uid)
                    fetched.add(remote.uid)
                except (VolumeError, TooLargeError) as error:
                    others.append(Outcome(remote.uid, remote.uid, "failed", str(error)))
            bars.update(bar, advance=1, note="")
    if not fetched:
        told = "".join(f"; {one.case}: {one.reason}" for one in others[:3])
        raise ConfigError(f"{archive.base} has no CT or MR series to fetch by this search{told}")
    cases = find_cases(folder, target, derived)
    return Cases(  # what an earlier search has fetched is no matter of this one
        tuple(scan for scan in cases.scans if scan.case in fetched),
        (*(other for other in cases.others if Path(other.file).parts[0] in fetched), *others),
    )


def store_masks(archive: Archive, target: Path, document: dict[str, Any], audit: Journal) -> VolumeError | None:
    """Stores the DICOM-SEG of a run, each once whatever happened before: the archive is asked what it has.

    Args:
        archive: Where to.
        target: Where they lie.
        document: Of the run; gets `stored`.
        audit: Gets a line for each that was taken, with the address of the archive.

    Returns:
        What to tell of those that were not taken, where there are any.

    Raises:
        ServiceError: The archive cannot be reached, or refuses.
    """
    sent, there, failed = 0, 0, {}
    for case in document["cases"]:
        if case["outcome"] not in ("done", "skipped"):
            continue
        try:
            uid = archive.store(target / f"{case['case']}{DICOM_SEG}")
        except VolumeError as error:
            failed[case["case"]] = str(error)
            continue
        if uid is None:
            there += 1
        else:
            audit.add(sop_instance_uid=uid, stored=archive.base)
            sent += 1
    document["stored"] = {"sent": sent, "there": there, "failed": failed}
    console.say(f"{archive.base}: {sent} DICOM-SEG stored, {there} were there already")
    if not failed:
        return None
    refused = VolumeError(f"{len(failed)} DICOM-SEG were not stored: {next(iter(failed.values()))}")
    refused.document = document
    return refused
