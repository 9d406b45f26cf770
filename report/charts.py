"""The drawings of a page, each with its numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pal.evaluate.records import Interval
from pal.evaluate.report import with_interval
from pal.report.drawing import BAD, GOOD, INK, MUTED, drawing, series
from pal.report.page import Picture, Table

Numbers = NDArray[np.float64]
MOST_POINTS = 2000
"""people that one drawing shows"""
LONGEST = 30
"""characters of a name beside an axis"""
ROW, ROOM = 0.32, 0.9
"""inches: of a row of a forest, and of the rest"""


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval."""

    value: float
    ci95: Interval | None

    def __str__(self) -> str:
        return with_interval(self.value, self.ci95)


def forest(caption: str, values: Mapping[str, Value], axis: str) -> Picture:
    """Draw a value with its interval for each name, one below the other; a line is at a coin."""
    names = list(values)
    with drawing(ROOM + ROW * len(names)) as made:
        for place, name in enumerate(names):
            one = values[name]
            made.plane.errorbar(
                [one.value], [-place], xerr=_reach([one]), fmt="o", color=series(0)[0], capsize=3
            )
        made.plane.axvline(0.5, color=MUTED, linestyle=":", linewidth=1)
        made.plane.set_yticks([-n for n in range(len(names))], [_short(name) for name in names])
        made.plane.set_xlabel(axis)
        svg = made.svg()
    rows = [[name, str(one)] for name, one in values.items()]
    best = max(values, key=lambda name: values[name].value)
    alt = f"{axis} of {len(names)} runs; the highest is {best} with {values[best]}."
    return Picture(caption, alt, svg, table=Table(caption, ["run", axis], rows))


def lines(
    caption: str, curves: Mapping[str, Mapping[int, Value]], x: str, y: str, is_log: bool = False
) -> Picture:
    """Draw values over whole numbers, a curve for each name, beside each other so that intervals
    do not hide one another."""
    ticks = sorted({at for curve in curves.values() for at in curve})
    place = {at: n if is_log else float(at) for n, at in enumerate(ticks)}
    step = min(np.diff(sorted(place.values())), default=1.0)
    rows = []
    with drawing() as made:
        for number, (name, curve) in enumerate(curves.items()):
            colour, marker = series(number)
            shift = 0.08 * step * (number - (len(curves) - 1) / 2.0)
            at = [place[key] + shift for key in curve]
            shown = list(curve.values())
            made.plane.errorbar(
                at, [one.value for one in shown], yerr=_reach(shown), marker=marker, color=colour,
                capsize=3, label=_short(name), linestyle="-" if number % 2 == 0 else "--",
            )  # fmt: skip
            rows += [[name, str(key), str(one)] for key, one in curve.items()]
        made.plane.set_xticks([place[key] for key in ticks], [str(key) for key in ticks])
        made.plane.set_xlabel(x)
        made.plane.set_ylabel(y)
        if len(curves) > 1:  # beside the plane, where it hides nothing
            made.figure.legend(loc="outside lower center", ncols=2)
        svg = made.svg()
    ends = "; ".join(
        f"{name}: " + ", ".join(f"{one.value:.3f} at {key}" for key, one in curve.items())
        for name, curve in list(curves.items())[:4]
    )
    table = Table.of(caption, ["run", x, y], rows)
    return Picture(caption, f"{y} by {x}. {ends}.", svg, table=table)


def reliability(caption: str, runs: Mapping[str, tuple[Numbers, Numbers]], bins: int) -> Picture:
    """Draw how often what is predicted with a probability is right, in bins of as many pairs each.

    ``runs``: of each the probability of the side that is predicted, from 0.5 to 1, and what the
    prediction earns, (n,) each.
    """
    rows, gaps = [], []
    with drawing() as made:
        made.plane.plot([0.5, 1.0], [0.5, 1.0], ":", color=MUTED, label="as often as said")
        for number, (name, (said, right)) in enumerate(runs.items()):
            order = np.argsort(said, kind="stable")
            parts = [part for part in np.array_split(order, bins) if len(part)]
            x = [float(said[part].mean()) for part in parts]
            y = [float(right[part].mean()) for part in parts]
            colour, marker = series(number)
            made.plane.plot(x, y, "-", marker=marker, color=colour, label=_short(name))
            both = list(zip(x, y, parts, strict=True))
            rows += [[name, f"{a:.3f}", f"{b:.3f}", f"{len(part):,}"] for a, b, part in both]
            gaps.append(f"{name} {max(abs(a - b) for a, b, _ in both):.3f}")
        made.plane.set_xlabel("probability of the predicted side")
        made.plane.set_ylabel("share that is right")
        made.figure.legend(loc="outside lower center", ncols=2)
        svg = made.svg()
    alt = f"How often predictions are right, in {bins} bins; the largest gaps: {', '.join(gaps)}."
    header = ["run", "probability said", "share right", "pairs"]
    return Picture(caption, alt, svg, table=Table.of(caption, header, rows))


def versus(
    caption: str, users: Sequence[str], before: Numbers, now: Numbers, x: str, y: str
) -> Picture:
    """Draw each user's accuracy, (U,), under two runs; who is below the diagonal is worse off.

    Of very many, as many are drawn as a page can hold, evenly from who loses most to who gains
    most.
    """
    loses = now < before
    order = np.argsort(now - before, kind="stable")
    is_drawn = np.zeros(len(users), bool)
    is_drawn[order[np.linspace(0, len(users) - 1, min(len(users), MOST_POINTS)).astype(int)]] = True
    if not is_drawn.all():
        caption += f" {MOST_POINTS:,} of {len(users):,} people, from the worst off to the best."
    with drawing() as made:
        low = float(min(before.min(), now.min(), 0.5))
        made.plane.plot([low, 1.0], [low, 1.0], ":", color=MUTED)
        for chosen, colour, marker, label in (
            (is_drawn & ~loses, GOOD, "o", "as well or better"),
            (is_drawn & loses, BAD, "X", "worse off"),
        ):  # fmt: skip
            if chosen.any():
                told = [
                    f"{_short(users[n])}: {before[n]:.2f} to {now[n]:.2f}"
                    for n in np.flatnonzero(chosen).tolist()
                ]
                made.points(before[chosen], now[chosen], told, colour, marker, label)
        made.plane.set_xlabel(_short(x))
        made.plane.set_ylabel(_short(y))
        made.figure.legend(loc="outside lower center", ncols=2)
        svg = made.svg()
    alt = (
        f"Accuracy of {len(users)} people: {int(loses.sum())} are worse off under {y} than under "
        f"{x}, {int((now > before).sum())} better."
    )
    rows = [
        [users[n], f"{before[n]:.3f}", f"{now[n]:.3f}", f"{now[n] - before[n]:+.3f}"]
        for n in order[is_drawn[order]].tolist()
    ]
    return Picture(
        caption, alt, svg, table=Table.of("each person", ["person", x, y, "difference"], rows)
    )


def simplex(caption: str, users: Sequence[str], weights: Numbers) -> Picture:
    """Draw users by their weights, (N, K), inside a polygon with a prototype at each corner: a user
    stands at the weighted mean of the corners. For K = 2 users are spread across the line, so that
    they do not hide one another."""
    count = weights.shape[1]
    largest = weights.argmax(axis=1)
    if count == 2:
        corners = np.array([[0.0, 0.0], [1.0, 0.0]])
        across = (np.arange(len(users)) % 7 - 3) * 0.05
    else:
        turn = np.pi / 2.0 + 2.0 * np.pi * np.arange(count) / count
        corners = np.column_stack([np.cos(turn), np.sin(turn)])
        across = np.zeros(len(users))
    place = weights @ corners
    with drawing(1.9 if count == 2 else 3.9) as made:
        outline = np.vstack([corners, corners[:1]])
        made.plane.plot(outline[:, 0], outline[:, 1], "-", color=MUTED, linewidth=1)
        for k in range(count):
            here = np.flatnonzero(largest == k)
            if len(here):
                colour, marker = series(k)
                told = [
                    f"{_short(users[n])}: {', '.join(f'{w:.2f}' for w in weights[n])}"
                    for n in here.tolist()
                ]
                x, y = place[here, 0], place[here, 1] + across[here]
                made.points(x, y, told, colour, marker)
            corner = corners[k] * (1.0 if count == 2 else 1.14)
            side = "top" if count == 2 else "center"
            shift = -0.2 if count == 2 else 0.0
            made.plane.text(corner[0], corner[1] + shift, f"{k}", ha="center", va=side, color=INK)
        made.plane.set_axis_off()
        if count > 2:
            made.plane.set_aspect("equal")
        else:
            made.plane.set_ylim(-0.45, 0.3)
        svg = made.svg()
    sizes = ", ".join(f"{int((largest == k).sum())} nearest to {k}" for k in range(count))
    alt = f"{len(users)} people among {count} prototypes: {sizes}."
    header = ["person", *(f"prototype {k}" for k in range(count))]
    rows = [[user, *(f"{w:.3f}" for w in row)] for user, row in zip(users, weights, strict=True)]
    return Picture(caption, alt, svg, table=Table.of("each person's weights", header, rows))


def _reach(values: Sequence[Value]) -> list[list[float]]:
    """Return how far intervals reach below and above."""
    ends = [one.ci95 or (one.value, one.value) for one in values]
    return [
        [max(one.value - low, 0.0) for one, (low, _) in zip(values, ends, strict=True)],
        [max(high - one.value, 0.0) for one, (_, high) in zip(values, ends, strict=True)],
    ]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 12]}...{name[-9:]}"
