"""Figures as rows of a Markdown table."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple


class Row(NamedTuple):
    """One figure with its floor, and what is aimed at."""

    what: str
    figure: str
    floor: str = ""
    ratio: str = ""
    aim: str = ""


def rate_row(what: str, rates: list[float], floors: list[float], unit: str, aim: str = "") -> Row:
    """A row of rates: medians, and the median of each round's ratio to its own floor."""
    ratios = [rate / floor for rate, floor in zip(rates, floors, strict=True)]
    return Row(
        what, f"{_number(median(rates))} {unit}", f"{_number(median(floors))} {unit}", f"{median(ratios):.2f}", aim
    )


def time_row(what: str, seconds: list[float], floors: list[float], aim: str = "") -> Row:
    """A row of durations in milliseconds, median and 95th percentile, with what they add to the floor."""
    added = median(seconds) - median(floors)
    return Row(
        what,
        f"{_milliseconds(median(seconds))} (p95 {_milliseconds(percentile(seconds, 95))})",
        _milliseconds(median(floors)),
        f"{added * 1000:+.2f} ms",
        aim,
    )


def percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def markdown(rows: list[Row]) -> str:
    lines = ["| what | Perdure | floor | ratio, or added | aim |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)
