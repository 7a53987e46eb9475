"""The critical-difference diagram: mean ranks on a line, methods that a test cannot tell apart joined by a bar."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from dropgen.platform.evaluation.charts import INK, MUTED, RULE

ROW = 0.3  # inches between two labels
BAR = 0.13  # inches between two bars


def cliques(ranks: list[float], critical: float) -> list[tuple[int, int]]:
    """First and last place of every largest run of sorted ranks whose ends are within `critical`."""
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank <= critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def rank_plot(mean_ranks: Mapping[str, float], critical: float) -> Figure:
    """Draws the diagram of Demsar, JMLR 2006: the best at the left, `critical` as a ruler above.

    Args:
        mean_ranks: By method, 1 is best.
        critical: `significance.critical_difference`.
    """
    names = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    ranks = [mean_ranks[name] for name in names]
    bars = cliques(ranks, critical)
    half = (len(names) + 1) // 2
    above, below = 0.62, 0.3 + BAR * len(bars) + ROW * half
    figure = Figure(figsize=(10.4, above + below))
    axis = figure.add_axes((0.24, 0, 0.52, 1))
    low, high = 1.0, float(len(names))
    axis.set(xlim=(low, high), ylim=(-below, above))
    axis.set_axis_off()
    axis.plot([low, high], [0, 0], color=INK, lw=1.2, clip_on=False)
    for tick in range(1, len(names) + 1):
        axis.plot([tick, tick], [0, 0.07], color=INK, lw=1.2, clip_on=False)
        axis.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=9, color=MUTED)
    shown = min(critical, high - low)
    axis.plot([low, low + shown], [0.42, 0.42], color=MUTED, lw=2, clip_on=False)
    longer = " (longer than the axis)" if critical > high - low else ""
    axis.text(low, 0.46, f"critical difference {critical:.2f}{longer}", va="bottom", fontsize=9, color=MUTED)
    for place, (first, last) in enumerate(bars):
        height = -BAR * (place + 1)
        axis.plot([ranks[first], ranks[last]], [height, height], color=INK, lw=4, solid_capstyle="round", clip_on=False)
    pad = 0.02 * (high - low)
    for place, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        left = place < half
        row = place if left else len(names) - 1 - place
        height = -(0.2 + BAR * len(bars) + ROW * row)
        end = low - pad if left else high + pad
        axis.plot([rank, rank, end], [0, height, height], color=RULE, lw=1.1, clip_on=False, zorder=0)
        axis.text(end, height, f" {name}  {rank:.2f} ", ha="right" if left else "left", va="center", fontsize=9.5,
                  color=INK)  # fmt: skip
    return figure
