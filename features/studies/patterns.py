"""A study whose files are named by patterns, as in a BIDS folder: images, their labels, and who is in which split.

In a pattern `*` stands for anything within one folder or file name, `**` for any folders, and `{subject}` for a part
of a name that is kept, without `/` and `_`, as BIDS writes its entities. What is kept twice must be the same twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from dropgen.config import Frozen
from dropgen.errors import StudyError, closest
from dropgen.features.studies.sources import CHANNEL, IMAGE, Row, case_id, row_of
from dropgen.features.studies.splits import SPLITS, Split, shuffled

KEPT = ("subject", "domain", "modality", "id")  # columns of a manifest; any other name pairs labels with images
TOKEN = re.compile(r"\*\*/|\*|\?|\{(\w+)\}")
ANY = {"**/": r"(?:[^/]+/)*", "*": r"[^/]*", "?": r"[^/]"}
WHOLE = 1e-6  # how far fractions may be from summing to 1


class Patterns(Frozen):
    """The `source` of a study whose files are found by their names.

    Attributes:
        folder: What the patterns start from; relative to the study's YAML file.
        images: Pattern of every image, with `{subject}` in it; of images of several channels a pattern for each, by
            the channel's name. A case is an image of the first channel with those of the others that agree with it in
            every name that both patterns keep.
        labels: Pattern of every label; one belongs to the images with which it shares all that both patterns keep.
        splits: Of every split its people, or its share of all people, who are then shuffled by the split's seed.
        domains: Of a split the domains that it takes; all of them where it is not named.
        leave_out: People who are in no split.
    """

    folder: str = "."
    images: str | dict[str, str]
    labels: str
    splits: dict[Split, float | tuple[str, ...]] = Field(min_length=1)
    domains: dict[Split, tuple[str, ...]] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()

    @field_validator("images")
    @classmethod
    def _tells_people_apart(cls, images: str | dict[str, str]) -> str | dict[str, str]:
        if isinstance(images, dict) and len(images) < 2:
            raise ValueError("name at least two channels, or give one pattern")
        for pattern in [images] if isinstance(images, str) else images.values():
            if "{subject}" not in pattern:
                raise ValueError(f"the pattern needs {{subject}}, because splits go by people: {pattern}")
        return images

    @field_validator("splits", mode="before")
    @classmethod
    def _quoted(cls, splits: object) -> object:
        people = [person for group in splits.values() for person in _listed(group)] if isinstance(splits, dict) else []
        for person in people:
            if not isinstance(person, str):
                raise ValueError(f'write the subject {person} as "{person}": YAML drops the zeros before a number')
        return splits

    @model_validator(mode="after")
    def _shares_or_people(self) -> Self:
        shares = [share for share in self.splits.values() if isinstance(share, float)]
        if shares and len(shares) < len(self.splits):
            raise ValueError("splits are lists of people or shares of all people, not both")
        if shares and (min(shares) <= 0 or abs(sum(shares) - 1) > WHOLE):
            raise ValueError(f"the shares {', '.join(f'{share:g}' for share in shares)} of splits must sum to 1")
        if self.domains and "{domain}" not in next(iter(self.by_column.values())):
            raise ValueError("domains chooses by {domain}, which the pattern of images does not hold")
        for split in self.domains:
            if split not in self.splits:
                raise ValueError(f"domains names split {split}, and splits does not")
        return self

    @property
    def by_column(self) -> dict[str, str]:
        """The patterns of images by the column that a manifest would have for them."""
        if isinstance(self.images, str):
            return {IMAGE: self.images}
        return {CHANNEL + name: pattern for name, pattern in self.images.items()}


@dataclass(frozen=True)
class Pattern:
    """One pattern and the folder that it starts from."""

    text: str
    folder: Path

    @property
    def names(self) -> frozenset[str]:
        """What is kept of a path."""
        return frozenset(self._regex.groupindex)

    def found(self) -> tuple[dict[Path, dict[str, str]], list[str]]:
        """Every NIfTI file of the pattern with what is kept of its path, in the paths' order, and what misfits."""
        kept, problems = {}, []
        for path in sorted(self.folder.glob(TOKEN.sub(lambda token: "*" if token[1] else token[0], self._escaped))):
            relative = path.relative_to(self.folder).as_posix()
            if not path.name.endswith((".nii", ".nii.gz")) or path.name.startswith(".") or path.is_dir():
                continue
            if match := self._regex.fullmatch(relative):
                kept[path] = match.groupdict()
            else:
                problems.append(
                    f"{path}: a name in braces would hold '_' or differ from its twin in '{self.text}'; "
                    "put the file elsewhere or narrow the pattern"
                )
        return kept, problems

    @property
    def _escaped(self) -> str:
        """The pattern with brackets that stand for themselves."""
        return re.sub(r"\[", "[[]", self.text)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts, end = [], 0
        seen: set[str | None] = set()
        for token in TOKEN.finditer(self.text):
            parts.append(re.escape(self.text[end : token.start()]))
            name, end = token[1], token.end()
            parts.append(ANY[token[0]] if name is None else f"(?P={name})" if name in seen else f"(?P<{name}>[^/_]+)")
            seen.add(name)
        return re.compile("".join([*parts, re.escape(self.text[end:])]))


@dataclass(frozen=True)
class Partners:
    """Files that go with the images of the first channel by what both patterns keep: labels, or another channel.

    Attributes:
        text: The pattern.
        files: Each with what is kept of its path.
        shared: The names that both patterns keep.
    """

    text: str
    files: Mapping[Path, Mapping[str, str]]
    shared: tuple[str, ...]

    @cached_property
    def _by_key(self) -> Mapping[tuple[str, ...], list[Path]]:
        grouped: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        for path, kept in self.files.items():
            grouped[_values(kept, self.shared)].append(path)
        return grouped

    def of(self, kept: Mapping[str, str]) -> list[Path]:
        """Those of one image."""
        return self._by_key.get(_values(kept, self.shared), [])

    def alone(self, found: Iterable[Mapping[str, str]]) -> list[Path]:
        """Those of no image."""
        used = {_values(kept, self.shared) for kept in found}
        return [path for path, kept in self.files.items() if _values(kept, self.shared) not in used]


def pattern_rows(patterns: Patterns, folder: Path) -> list[Row]:
    """Lists the cases of a study whose files are found by their names; no volume is opened.

    Args:
        patterns: As the study's YAML file gives them.
        folder: `patterns.folder`, absolute.

    Raises:
        StudyError: No image is found, an image of training or validation has no label, an image has several, a label
            has no image, a channel is missing or there twice, or a person is in no split or in several; all are listed.
    """
    (column, first), *others = patterns.by_column.items()
    images, labels = Pattern(first, folder), Pattern(patterns.labels, folder)
    masks, misfits = labels.found()
    found, problems = images.found()
    found = {image: kept for image, kept in found.items() if image not in masks}
    truth = Partners(labels.text, masks, tuple(sorted(images.names & labels.names)))
    channels: dict[str, Partners] = {}
    for name, text in others:
        pattern = Pattern(text, folder)
        files, more = pattern.found()
        misfits += more
        files = {path: kept for path, kept in files.items() if path not in masks}
        channels[name] = Partners(text, files, tuple(sorted(images.names & pattern.names)))
    if not found and not problems:
        raise StudyError(f"no NIfTI file in {folder} fits images: '{first}'; correct the pattern or folder")
    split_of, wrong = _assigned(patterns, found)
    problems += misfits + wrong + _unknown_domains(patterns, found)
    rows = []
    for image, kept in found.items():
        split = split_of.get(kept["subject"])
        if split is None or ("domain" in kept and kept["domain"] not in patterns.domains.get(split, [kept["domain"]])):
            continue
        row = {column: str(image)}
        for name, partners in channels.items():
            row[name] = str(next(iter(partners.of(kept)), ""))
            if (count := len(partners.of(kept))) != 1:
                told = f"{count or 'no'} image{'s' if count else ''} of channel {name.removeprefix(CHANNEL)}"
                problems.append(f"{image}: {told} for it by '{partners.text}'; a case has one")
        fitting = truth.of(kept)
        if len(fitting) > 1:
            problems.append(f"{image}: {len(fitting)} labels fit it, {', '.join(map(str, fitting))}; narrow 'labels'")
        elif not fitting and split != "test":
            problems.append(f"{image}: no label fits '{patterns.labels}' and split {split} needs one")
        row = row_of(row, label=str(fitting[0]) if fitting else "", split=split)
        row |= {name: kept[name] for name in KEPT if name in kept}
        rows.append(row | {"id": row["id"] or case_id(image)})
    problems += [f"{mask}: label without an image" for mask in truth.alone(found.values())]
    for name, partners in channels.items():
        told = f"channel {name.removeprefix(CHANNEL)} without the image of the first channel"
        problems += [f"{path}: {told}" for path in partners.alone(found.values())]
    if problems:
        raise StudyError(f"{folder} cannot be read by the patterns of the study:", problems)
    return rows


def _assigned(patterns: Patterns, found: Mapping[Path, Mapping[str, str]]) -> tuple[dict[str, Split], list[str]]:
    """The split of every person, and what is wrong with the lists; each line names one of the person's images."""
    example = {kept["subject"]: image for image, kept in reversed(list(found.items()))}
    people = sorted(example.keys() - set(patterns.leave_out))
    lists = _drawn(patterns.splits, people)
    problems = [f"{split}: a share of {_share(patterns, split)} of {len(people)} people is nobody"
                for split, group in lists.items() if not group]  # fmt: skip
    named: list[tuple[str, str]] = [(person, split) for split, group in lists.items() for person in group]
    named += [(person, "leave_out") for person in patterns.leave_out]
    for person in sorted({person for person, _ in named} | set(people)):
        splits = [split for one, split in named if one == person]
        if person not in example:
            pattern = next(iter(patterns.by_column.values()))
            problems.append(f"subject {person}: named in {splits[0]}, and no image of '{pattern}' is theirs")
        elif len(splits) > 1:
            problems.append(f"subject {person}: in {' and '.join(splits)}; one place takes them ({example[person]})")
        elif not splits:
            problems.append(f"subject {person}: in no split; add them to one or to leave_out ({example[person]})")
    return {person: split for split, group in lists.items() for person in group}, problems


def _unknown_domains(patterns: Patterns, found: Mapping[Path, Mapping[str, str]]) -> list[str]:
    known = {kept.get("domain", "") for kept in found.values()}
    return [
        f"domains.{split} names '{domain}', which no image has{closest(domain, known)}"
        for split, domains in patterns.domains.items()
        for domain in domains
        if domain not in known
    ]


def _drawn(splits: Mapping[Split, float | tuple[str, ...]], people: Sequence[str]) -> dict[Split, Sequence[str]]:
    """The people of every split: as listed, or cut from their shuffle at the rounded sums of the shares."""
    drawn: dict[Split, Sequence[str]] = {}
    order, before = shuffled(people), 0.0
    for split in SPLITS:
        group = splits.get(split)
        if isinstance(group, float):
            drawn[split] = order[round(before * len(order)) : round((before + group) * len(order))]
            before += group
        elif group is not None:
            drawn[split] = group
    return drawn


def _share(patterns: Patterns, split: Split) -> str:
    share = patterns.splits[split]
    return f"{share:g}" if isinstance(share, float) else str(len(share))


def _values(kept: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(kept[name] for name in names)


def _listed(group: object) -> Iterable[object]:
    return group if isinstance(group, list | tuple) else ()
