"""Which store entries a study's cases are: the small index over the content-addressed store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dropgen.errors import StoreError, VolumeError
from dropgen.features.extractors import Extractor
from dropgen.features.store import KINDS, FeatureStore, Kind
from dropgen.features.store.entry import sealed, unsealed
from dropgen.features.studies.prepare import Preparation
from dropgen.features.studies.study import Case, Study
from dropgen.manifest import digest, file_digest, read_json, write_json

STUDIES = "studies"
SETTLED_SECONDS = 2.0  # a file younger than a clock tick can change again without a new time stamp


@dataclass(frozen=True)
class CaseKeys:
    """Store keys of one case; None where it has no label or the index is without features."""

    volume: str
    label: str | None = None
    features: str | None = None

    def entries(self) -> Iterator[tuple[Kind, str]]:
        """Kind and key of every entry the case consists of."""
        yield "volumes", self.volume
        if self.label is not None:
            yield "labels", self.label
        if self.features is not None:
            yield "features", self.features


@dataclass(frozen=True)
class StudyIndex:
    """The entries of every case of a study, for one extractor.

    A volume's key covers the content of the image's files, one per channel, and how it is prepared; a label's key its
    own file's content and the volume's key; a features key the volume's key, the extractor's fingerprint and the stored
    type. So a corrected label changes the label's key alone, and studies over the same files share entries.

    Attributes:
        study: Name of the study.
        extractor: Fingerprint of the extractor; None for an index without features.
        dtype: Type in which features are stored.
        keys: Case id to its keys.
    """

    study: str
    extractor: str | None
    dtype: str
    keys: Mapping[str, CaseKeys]

    @classmethod
    def of(cls, study: Study, extractor: Extractor | None, dtype: str, store: FeatureStore | None = None) -> StudyIndex:
        """Hashes the study's files, or takes the hashes remembered in `store` for files that did not change.

        Raises:
            VolumeError: A file cannot be read; names the case.
        """
        fingerprint = None if extractor is None else extractor.fingerprint
        hashes = _FileHashes(None if store is None else store.folder / "source-hashes.json")
        keys = {case.id: case_keys(case, study.preparation, fingerprint, dtype, hashes.of) for case in study.cases}
        if store is not None and store.remembers:
            hashes.save()
        return cls(study.name, fingerprint, dtype, keys)

    @property
    def digest(self) -> str:
        """One hash over all keys: what a trial on this study depends on."""
        return digest({case: asdict(keys) for case, keys in self.keys.items()})

    def missing(self, store: FeatureStore) -> dict[str, CaseKeys]:
        """The cases of which at least one entry is not in the store."""
        held = set(store.everything())
        return {case: keys for case, keys in self.keys.items() if not held.issuperset(keys.entries())}

    def require(self, store: FeatureStore) -> None:
        """Refuses a store that does not cover every case.

        Raises:
            StoreError: Names the first case that is not covered, what it lacks and the command that writes it.
        """
        missing = self.missing(store)
        if not missing:
            return
        case, keys = next(iter(missing.items()))
        lacks = [kind for kind, key in keys.entries() if not store.has(kind, key)]
        sentence = f"store {store.location} lacks the {' and '.join(lacks)} of case {case}"
        if len(missing) > 1:
            sentence += f" and of {len(missing) - 1} more of the {len(self.keys)} cases"
        others = _other_extractors(store, keys.volume) if lacks == ["features"] else []
        if others:
            sentence += (
                f"; it holds features of this case made by {', '.join(others)}, not by {self.extractor} ({self.dtype})"
            )
        raise StoreError(f"{sentence}; run `dropgen precompute EXPERIMENT`")

    def entries(self) -> list[tuple[Kind, str]]:
        """Every entry of the study once, even where cases share it."""
        return list(dict.fromkeys(entry for keys in self.keys.values() for entry in keys.entries()))

    def count(self, store: FeatureStore) -> tuple[dict[Kind, int], dict[Kind, int]]:
        """How many entries of each kind are in the store, and how many are not."""
        held = set(store.everything())
        found = Counter((entry[0], entry in held) for entry in self.entries())
        return {kind: found[kind, True] for kind in KINDS}, {kind: found[kind, False] for kind in KINDS}

    def sizes(self, store: FeatureStore) -> dict[Kind, int]:
        """Bytes of each kind that are in the store."""
        sizes, bytes_of = store.sizes(), Counter[Kind]()
        for entry in self.entries():
            bytes_of[entry[0]] += sizes.get(entry, 0)
        return {kind: bytes_of[kind] for kind in KINDS}

    def save(self, store: FeatureStore) -> str:
        """Writes the index to `<store>/studies/`, one for each study, extractor and type; returns its name.

        What no saved index refers to is garbage, so it is saved before the first entry is looked for.
        """
        parts = (self.study,) if self.extractor is None else (self.study, self.extractor, self.dtype)
        name = f"{STUDIES}/{'.'.join(parts)}.json"
        store.place.write_document(name, sealed(asdict(self)))
        return name

    @classmethod
    def saved(cls, store: FeatureStore) -> list[StudyIndex]:
        """Every index that was saved in a store.

        Raises:
            StoreError: A file is damaged, so that nobody knows which entries it refers to.
        """
        found = []
        for name in store.place.documents(STUDIES):
            try:
                record = unsealed(store.place.read_document(name))
                keys = {case: CaseKeys(**keys) for case, keys in record["keys"].items()}
                found.append(cls(record["study"], record["extractor"], record["dtype"], keys))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{store.location}/{name} is no index of a study ({type(error).__name__}); run `dropgen precompute "
                    "EXPERIMENT` for that study, or remove the file if it is not wanted any more"
                ) from error
        return found


def case_keys(
    case: Case,
    preparation: Preparation,
    fingerprint: str | None,
    dtype: str,
    hash_of: Callable[[Path], str] = file_digest,
) -> CaseKeys:
    """The keys of one case, from the content of its files.

    Raises:
        VolumeError: A file cannot be read; names the case.
    """
    # Only the rules of this case's modality or channels, so that editing another modality's changes nothing here.
    made = preparation.key(case.modality)
    try:
        volume = digest(["volume", *map(hash_of, case.images), made])
        label = None if case.label is None else digest(["label", hash_of(case.label), volume])
    except OSError as error:
        raise VolumeError(
            f"case {case.id}: {error.filename} cannot be read ({error.strerror}); check the study's manifest"
        ) from error
    features = None if fingerprint is None else digest(["features", volume, fingerprint, dtype])
    return CaseKeys(volume, label, features)


def _other_extractors(store: FeatureStore, volume: str) -> list[str]:
    """Who made the features of this volume that are in the store."""
    records = [store.provenance("features", key) for key in store.entries("features")]
    return sorted({f"{made['extractor']} ({made['dtype']})" for made in records if made.get("volume") == volume})


class _FileHashes:
    """Content hashes of source files, remembered by path, size and time stamps."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[object]] = (read_json(path) if path else None) or {}
        self._changed = False

    def of(self, path: Path) -> str:
        """The hash of a file's bytes."""
        status = path.stat()
        # ctime moves even when a tool restores the modification time.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(str(path))
        if known and known[:3] == stamp:
            return str(known[3])
        found = file_digest(path)
        if time.time() - status.st_ctime > SETTLED_SECONDS:
            self._known[str(path)] = [*stamp, found]
            self._changed = True
        return found

    def save(self) -> None:
        """Writes the hashes back, where any is new and the store can be written to."""
        if self._path and self._changed:
            with suppress(OSError):  # a store that is only read from needs no memory of its own
                write_json(self._path, self._known)
