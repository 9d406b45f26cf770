"""Which things a page shows of each group of people, and of all: things are numbers here."""

from __future__ import annotations

from dataclasses import dataclass

from pal.audit.content import CONSENSUS, Judged

LIKED, DIVIDING = 5, 12
"""lines of what a group likes most, and of what divides people most"""


@dataclass(frozen=True)
class Titled:
    """A list under its title."""

    title: str
    things: list[int]


@dataclass(frozen=True)
class Listing:
    """All lists of a page."""

    groups: list[list[Titled]]
    """of each group"""
    dividing: list[int]
    liked: list[int]
    """by everybody"""
    disliked: list[int]

    @classmethod
    def of(cls, judged: Judged) -> Listing:
        return cls(
            [_of_group(judged, group) for group in range(judged.groups)],
            judged.ranked(judged.contested(), DIVIDING),
            judged.ranked(judged.liked_by_all(1.0), CONSENSUS),
            judged.ranked(judged.liked_by_all(-1.0), CONSENSUS),
        )

    @property
    def things(self) -> list[int]:
        """Everything that is shown, once."""
        of_groups = [one.things for group in self.groups for one in group]
        every = [*of_groups, self.dividing, self.liked, self.disliked]
        return sorted({thing for things in every for thing in things})


def _of_group(judged: Judged, group: int) -> list[Titled]:
    apart, liked = judged.apart(group), judged.most_liked(group)
    found = [Titled("More than the others", judged.ranked(apart))]
    if judged.groups > 2:  # of two groups, what one likes less is what the other likes more
        found.append(Titled("Less than the others", judged.ranked(-apart)))
    return [
        *found,
        Titled("Most liked", judged.ranked(liked, LIKED)),
        Titled("Least liked", judged.ranked(-liked, LIKED)),
    ]
