"""The tables of an experiment as a paper takes them: input the file, with the package booktabs loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dropgen.platform.evaluation.findings import VERDICTS, chance, interval, signed
from dropgen.platform.evaluation.metrics import Spread
from dropgen.platform.evaluation.results import ABSENT, Group, ranking
from dropgen.platform.evaluation.significance import Significance
from dropgen.platform.evaluation.tables import COLUMNS, shown

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
}  # fmt: skip


def tables(groups: Sequence[Group], found: Significance | None, notes: Sequence[str]) -> str:
    """Dice, the other measures, and the pairs, each a table of its own.

    Args:
        groups: Lines of the table.
        found: Of the pairs; None leaves their table out.
        notes: What the reader must know, as a paragraph below.
    """
    domains = sorted({name for group in groups for row in group.rows for name in row["target_dice"]})
    parts = [_dice(groups, domains), _measures(groups, domains)]
    if found is not None:
        parts.append(_pairs(found))
    return "\n\n".join([*parts, *(escape(note) for note in notes)]) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def _dice(groups: Sequence[Group], domains: Sequence[str]) -> str:
    columns = ["source_dice", *domains, "unseen"]
    means = {column: [group.spread(column).mean for group in groups] for column in columns}
    best = {column: max((round(100 * m, 1) for m in found if m is not None), default=None)
            for column, found in means.items()}  # fmt: skip
    rows = []
    for place in ranking(groups):
        cells = [_cell(place.group.spread(column), best[column]) for column in columns]
        rows.append([escape(place.group.name), *cells, ABSENT if place.rank is None else str(place.rank)])
    header = ["Method", "Source", *domains, "Unseen mean", "Rank"]
    return _table("dice", "Dice $\\times$ 100, mean ($\\pm$ SE over seeds).", header, rows)


def _measures(groups: Sequence[Group], domains: Sequence[str]) -> str:
    header = ["Method", *(title for title, _ in COLUMNS.values())]
    rows = [
        [escape(group.name), *(escape(shown(group.measured(name, domains).mean, name)) for name in COLUMNS)]
        for group in groups
    ]
    return _table("measures", "Further measures on unseen domains, mean over subjects.", header, rows)


def _pairs(found: Significance) -> str:
    header = ["First", "Second", "Gain", "95% interval", "Not ahead", "p (Holm)", "Source", "Verdict"]
    rows = [
        [escape(text) for text in (
            pair.first, pair.second, signed(pair.gain), interval(pair), chance(pair.not_better, found.draws),
            ABSENT if pair.p is None else f"{pair.p:.3g}", signed(pair.source_gain), VERDICTS[pair.verdict],
        )]
        for pair in found.pairs
    ]  # fmt: skip
    return _table("pairs", f"Pairs of methods on unseen domains, n = {found.n} subjects.", header, rows)


def _cell(spread: Spread, best: float | None) -> str:
    if spread.mean is None:
        return "--"
    mean = f"{100 * spread.mean:.1f}"
    mean = f"\\textbf{{{mean}}}" if round(100 * spread.mean, 1) == best else mean
    return mean if spread.se is None else f"{mean} $\\pm$ {100 * spread.se:.1f}"


def _table(label: str, caption: str, header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    titles = [escape(title) for title in header]
    body = [" & ".join(row).replace(ABSENT, "--") + r" \\" for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", " & ".join(titles) + r" \\", r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip
