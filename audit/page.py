"""audit.md: the verdict, its numbers, what people disagree about, and what limits it.

Texts of people are text there, whatever they hold: ``_cut`` writes all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pal.audit.content import CONSENSUS, Judged
from pal.audit.record import AuditRecord, Interval
from pal.evaluate.report import Table, as_markdown

LONGEST = 220
"""characters of a text"""
USERS, NULL = "users.png", "null.png"
MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")
"""characters that Markdown, or HTML within it, gives a meaning"""


@dataclass(frozen=True)
class Content:
    """What is shown beside the record."""

    judged: Judged
    shown: Sequence[str]
    agree: str | None
    """of votes: the answer whose share is told"""


def as_page(record: AuditRecord, content: Content | None, pictures: Sequence[str]) -> str:
    """Return the Markdown page of an audit."""
    parts = [f"# Audit of {record.dataset}", f"**{record.sentence}**"]
    if record.untrained:
        parts.append("The encoder has random weights (untrained): this says nothing about people.")
    parts += ["## Numbers", as_markdown(_numbers(record))]
    if content is not None:
        parts += _disagreements(record, content)
    if USERS in pictures:
        parts.append(f"![users by their own tastes]({USERS})")
    parts += _discarded(record) + _parts(record) + _power(record)
    parts += ["## What limits this", "\n".join(f"- {line}" for line in record.limits)]
    if NULL in pictures:
        parts.append(f"![the statistics and their nulls]({NULL})")
    return "\n\n".join(parts) + "\n"


def _numbers(r: AuditRecord) -> Table:
    rows = [["what", "value"]]

    def add(name: str, value: str | None) -> None:
        if value is not None:
            rows.append([name, value])

    encoder = "none (--no-features)" if r.encoder is None else r.encoder
    add("encoder", encoder)
    add("people, answers, things judged", f"{r.users:,}, {r.answers:,}, {r.things:,}")
    add("answers per person, median", f"{r.answers_per_user:.0f}")
    add("prompt groups", f"{r.prompt_groups:,}")
    add("gain of many tastes over one, nats an answer", _with(r.gain_nats, r.gain_ci95, "+.4f"))
    points, interval = r.gain_points, r.gain_points_ci95
    scaled = None if interval is None else (100 * interval[0], 100 * interval[1])
    add("the same in points of accuracy", _with(_times(points, 100), scaled, "+.1f"))
    add("people who gain", _share(r.users_who_gain))
    if r.strength is not None:
        sigma, tau = r.strength
        add("strength of the priors, by cross-fitting", f"sigma {sigma:g}, tau {tau:g}")
    if r.p_features is not None:
        told = f"{r.p_features:.3f} (parametric bootstrap, {r.permutations} draws)"
        add("test B, features: p", told)
        add("the same, people exchanged", f"{r.p_permutation:.3f} (within {r.strata})")
    if r.p_overlap is not None:
        told = f"{r.p_overlap:.3f} (parametric bootstrap, {r.overlap_draws} draws)"
        add("test A, overlap: p", f"{told}; {r.p_overlap_permutation:.3f} (answers exchanged)")
        add("overlap", f"{r.overlap_users:,} people on {r.overlap_pairs:,} pairs in common")
        add("directions of agreement beyond one taste", f"{r.directions}")
    else:
        add("test A, overlap", "no pair was judged by enough people")
    add("two people differ about the same pair", _share(r.disagreement))
    add("Krippendorff's alpha", _with(r.krippendorff_alpha, None, ".3f"))
    add("reliability, median person", _with(r.median_reliability, None, ".2f"))
    add("careless people", _share(r.careless_share))
    add("share of the variance of margins between people", _share(r.between_users))
    if r.groups is not None and r.silhouette is not None:
        stable = "" if r.group_stability is None else f", stability {r.group_stability:.2f}"
        add("groups that the weights show", f"{r.groups} (silhouette {r.silhouette:.2f}{stable})")
    return rows


def _disagreements(r: AuditRecord, content: Content) -> list[str]:
    judged, said = content.judged, content.agree
    sizes = [group.users for group in r.groups_shown]
    if len(sizes) < 2:
        return []
    told = "## What people disagree about\n\n"
    if r.groups is not None and r.groups >= 2:
        told += f"The weights show {r.groups} groups. "
    else:
        told += (
            f"There is no sharp border between groups: people pass into each other. To show what "
            f"they disagree about, they are divided into {len(sizes)} parts all the same. "
        )
    unit = f"answers “{_cut(said)}”" if said else "comparisons that it wins"
    told += (
        f"Shares are of {unit}, counted, with how many there are in brackets; things are ranked by "
        "the fitted tastes."
        if judged.taste is not None
        else f"Shares are of {unit}, counted; things are ranked by how many standard errors apart "
        "the shares are."
    )
    parts = [told]
    every = sum(sizes)
    for group, size in enumerate(sizes):
        parts.append(f"### Group {group + 1}: {size:,} people ({size / every:.0%})")
        apart = judged.apart(group)
        scores = [("More than the others", apart), ("Less than the others", -apart)]
        # of two groups, what one likes less is what the other likes more
        for title, score in scores if len(sizes) > 2 else scores[:1]:
            parts.append(f"{title}:\n\n" + _compared(content, judged.ranked(score), group))
        liked = judged.most_liked(group)
        for title, score in (("Most liked", liked), ("Least liked", -liked)):
            parts.append(f"{title}:\n\n" + _compared(content, judged.ranked(score, 5), group))
    parts.append("### What divides people most")
    parts.append(_by_group(content, judged.ranked(judged.contested(), 12)))
    for title, sign in (("### What everybody likes", 1.0), ("### What nobody likes", -1.0)):
        found = judged.ranked(judged.liked_by_all(sign), CONSENSUS)
        if found:
            parts += [title, _by_group(content, found)]
    return parts


def _compared(content: Content, things: Sequence[int], group: int) -> str:
    rows = [["this group", "others", "text"]]
    for thing in things:
        own, others = (
            told(thing, group) for told in (content.judged.share, content.judged.share_of_others)
        )
        rows.append([_counted(*own), _counted(*others), _cut(content.shown[thing])])
    return as_markdown(rows)


def _by_group(content: Content, things: Sequence[int]) -> str:
    groups = range(content.judged.groups)
    rows = [[*(f"group {g + 1}" for g in groups), "text"]]
    for thing in things:
        shares = [_counted(*content.judged.share(thing, g)) for g in groups]
        rows.append([*shares, _cut(content.shown[thing])])
    return as_markdown(rows)


def _discarded(r: AuditRecord) -> list[str]:
    if r.overruled is None:
        return []
    lines = [
        "## What a majority vote or a rubric would discard",
        f"One label for each pair, the majority's, contradicts {r.overruled:.1%} of the answers; "
        f"for {r.overruled_users:.1%} of the people it contradicts a third of what they said, or "
        "more.",
    ]
    told = [
        f"group {n + 1}: {one.overruled:.1%}"
        for n, one in enumerate(r.groups_shown)
        if one.overruled is not None
    ]
    if len(told) > 1:
        lines.append(f"By group: {', '.join(told)}.")
    if r.verdict == "plural" and r.gain_nats is not None:
        lines.append(
            f"After it everybody would have answered alike: the gain of many tastes, "
            f"{r.gain_nats:+.4f} nats an answer, could not be found any more."
        )
    return ["\n\n".join(lines)]


def _parts(r: AuditRecord) -> list[str]:
    if not r.parts:
        return []
    rows = [["part", "answers", "people", "gain, nats", "p", "p (Holm)"]]
    for one in r.parts:
        gain = _with(one.gain_nats, one.gain_ci95, "+.4f") or ""
        counts = [f"{one.answers:,}", f"{one.users:,}"]
        rows.append([_cut(one.part), *counts, gain, f"{one.p:.3f}", f"{one.p_holm:.3f}"])
    return ["## Where the plurality is", as_markdown(rows)]


def _power(r: AuditRecord) -> list[str]:
    if r.power is None:
        return []
    rows = [["other taste", "answers per person", "smallest share found 8 times in 10"]]
    for one in r.power:
        share = "more than half" if one.share is None else f"{one.share:.0%}"
        rows.append([one.other, f"{one.answers_per_user:.0f}", share])
    return ["## What could have been seen", as_markdown(rows)]


def _counted(share: float | None, count: int) -> str:
    return f"- ({count})" if share is None else f"{share:.0%} ({count})"


def _cut(text: str) -> str:
    """Return what somebody wrote on one line, not too long, and as nothing but text: no markup, no
    link, and no picture that another machine would be asked for."""
    plain = " ".join(text.split())
    plain = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."
    return MARKUP.sub(r"\\\g<0>", plain)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _with(value: float | None, interval: Interval | None, form: str) -> str | None:
    if value is None:
        return None
    if interval is None:
        return format(value, form)
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
