"""audit.md: the verdict, its numbers, what people disagree about, and what limits it.

Texts of people are text there, whatever they hold: ``_cut`` writes all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pal.audit.content import Judged
from pal.audit.groups import APART, STABLE
from pal.audit.listing import Listing
from pal.audit.record import AuditRecord, Interval
from pal.evaluate.report import Table, as_markdown
from pal.evaluate.sentences import p_cell

LONGEST = 220
"""characters of a text"""
USERS, NULL = "users.png", "null.png"
MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")
"""characters that Markdown, or HTML within it, gives a meaning"""


@dataclass(frozen=True)
class Content:
    """What is shown beside the record."""

    judged: Judged
    listing: Listing
    shown: Sequence[str]
    agree: str | None
    """of votes: the answer whose share is told"""
    thumbnails: Mapping[int, str]
    """files of the things that are images"""


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
    add("the same in points of accuracy", _with(r.gain_points, r.gain_points_ci95, "+.1f"))
    add("people who gain", _share(r.users_who_gain))
    if r.strength is not None:
        sigma, tau = r.strength
        add("strength of the priors, by cross-fitting", f"sigma {sigma:g}, tau {tau:g}")
    if r.p_features is not None:
        told = f"{p_cell(r.p_features)} (parametric bootstrap, {r.permutations} draws)"
        add("test B, features: p", told)
    if r.p_permutation is not None:
        add("the same, people exchanged", f"{p_cell(r.p_permutation)} (within {r.strata})")
    if r.p_overlap is not None:
        told = f"{p_cell(r.p_overlap)} (parametric bootstrap, {r.overlap_draws} draws)"
        if r.p_overlap_permutation is not None:
            told += f"; {p_cell(r.p_overlap_permutation)} (answers exchanged)"
        add("test A, overlap: p", told)
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
        count = f"{r.groups}" if r.groups > 1 else "none clear"
        add("groups that the weights show", f"{count} (silhouette {r.silhouette:.2f}{stable})")
    return rows


def _disagreements(r: AuditRecord, content: Content) -> list[str]:
    sizes = [group.users for group in r.groups_shown]
    if len(sizes) < 2:
        return []
    judged, listing, said = content.judged, content.listing, content.agree
    unit = f"answers “{_cut(said)}”" if said else "comparisons that it wins"
    how = (
        f"Shares are of {unit}, counted, with how many there are in brackets; things are ranked by "
        "the fitted tastes."
        if judged.taste is not None
        else f"Shares are of {unit}, counted; things are ranked by how many standard errors apart "
        "the shares are."
    )
    parts = [f"## What people disagree about\n\n{border(r)} {how}"]
    every, word = sum(sizes), _word(r)
    for group, size in enumerate(sizes):
        parts.append(f"### {word} {group + 1}: {size:,} people ({size / every:.0%})")
        for one in listing.groups[group]:
            parts.append(f"{one.title}:\n\n" + _compared(r, content, one.things, group))
    parts += ["### What divides people most", _by_group(r, content, listing.dividing)]
    for title, found in (
        ("### What everybody likes", listing.liked),
        ("### What nobody likes", listing.disliked),
    ):
        if found:
            parts += [title, _by_group(r, content, found)]
    return parts


def border(r: AuditRecord) -> str:
    """Say whether people are groups, and how sure that is."""
    parts = len(r.groups_shown)
    divided = f"To show what they disagree about, they are divided into {parts} parts all the same."
    if r.groups is not None and r.groups >= 2:
        return (
            f"The weights show {r.groups} groups; other starts of the fit find them again "
            f"(stability {r.group_stability:.2f}; 1 is the same groups, 0 is chance)."
            if r.group_stability is not None
            else f"The weights show {r.groups} groups."
        )
    if _is_unstable(r):
        return (
            "There are no clear groups: other starts of the fit divide people otherwise (stability "
            f"{r.group_stability:.2f}; 1 is the same groups, 0 is chance, below {STABLE} no number "
            f"of groups is stated). {divided}"
        )
    return f"There is no sharp border between groups: people pass into each other. {divided}"


def _is_unstable(r: AuditRecord) -> bool:
    """Say whether there would be groups if other starts of the fit found them too."""
    is_apart = r.silhouette is not None and r.silhouette >= APART
    return is_apart and r.group_stability is not None and r.group_stability < STABLE


def _word(r: AuditRecord) -> str:
    return "Group" if r.groups is not None and r.groups >= 2 else "Part"


def _compared(r: AuditRecord, content: Content, things: Sequence[int], group: int) -> str:
    header = [f"this {_word(r).lower()}", "others"]
    cells = [
        [
            _counted(*told(thing, group))
            for told in (content.judged.share, content.judged.share_of_others)
        ]
        for thing in things
    ]
    return _table(content, header, cells, things)


def _by_group(r: AuditRecord, content: Content, things: Sequence[int]) -> str:
    groups = range(content.judged.groups)
    header = [f"{_word(r).lower()} {g + 1}" for g in groups]
    cells = [[_counted(*content.judged.share(thing, g)) for g in groups] for thing in things]
    return _table(content, header, cells, things)


def _table(
    content: Content, header: list[str], cells: list[list[str]], things: Sequence[int]
) -> str:
    """Return a table of things; where some are images, a column shows them."""
    has_images = any(thing in content.thumbnails for thing in things)
    rows = [[*header, *(["image"] if has_images else []), "text"]]
    for own, thing in zip(cells, things, strict=True):
        text = _cut(content.shown[thing])
        file = content.thumbnails.get(thing)
        image = "" if file is None else f"![{text}]({file})"
        rows.append([*own, *([image] if has_images else []), text])
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
    word = _word(r).lower()
    told = [
        f"{word} {n + 1}: {one.overruled:.1%}"
        for n, one in enumerate(r.groups_shown)
        if one.overruled is not None
    ]
    if len(told) > 1:
        lines.append(f"By {word}: {', '.join(told)}.")
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
        rows.append([_cut(one.part), *counts, gain, p_cell(one.p), p_cell(one.p_holm)])
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


def _with(value: float | None, interval: Interval | None, form: str) -> str | None:
    if value is None:
        return None
    if interval is None:
        return format(value, form)
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
