"""Statistics of runs that belong together in pairs, and the tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """How much larger one of two paired samples is.

    Attributes:
        mean: Mean of the differences.
        low: Lower end of the 95 % confidence interval of the mean (Student's t).
        high: Upper end.
        p: Two-sided p value of the paired t test; not corrected.
        larger: Number of pairs in which the first is larger.
        pairs: Number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    larger: int
    pairs: int


def compare(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares two samples, pair by pair.

    With a single pair the interval and p are NaN. If all pairs differ by the same, the interval is
    a point, and p is 0, or 1 if they do not differ.

    Raises:
        ValueError: If the samples have different sizes or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"first and second must be pairs, got {len(first)} and {len(second)} values"
        )
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, pairs = statistics.fmean(differences), len(differences)
    larger = sum(difference > 0 for difference in differences)
    if pairs == 1:
        return Difference(mean, math.nan, math.nan, math.nan, larger, pairs)
    error = statistics.stdev(differences) / math.sqrt(pairs)
    if error <= 1e-12 * abs(mean):
        return Difference(mean, mean, mean, float(mean == 0), larger, pairs)
    half = float(stats.t.ppf(0.975, pairs - 1)) * error
    p = float(stats.ttest_rel(first, second).pvalue)
    return Difference(mean, mean - half, mean + half, p, larger, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number by Holm's method, in the same order.

    The smallest is multiplied by the number of tests, the next by one less, and so on; none becomes
    smaller than the one before. NaN stays NaN and counts as a test.
    """
    corrected = [math.nan] * len(p_values)
    known = [k for k, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    for rank, k in enumerate(sorted(known, key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, with columns of even width."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def format_p(p: float) -> str:
    """Returns a p value as a table shows it."""
    return "?" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"
