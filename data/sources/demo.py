"""The built-in dataset: statements on six interests, generated here, so that a demo needs no
download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import PositiveInt

from pal.config import GroupedStatementsConfig
from pal.data.adapter import Adapter, Part
from pal.data.sources.statements import Statement, ask, planted
from pal.dataset import CONCATENATED
from pal.errors import DataError

# Interests are things that one likes or leaves; none is a trait of a person or a people.
INTERESTS: dict[str, tuple[str, ...]] = {
    "gardening": (
        "growing tomatoes", "pruning roses", "turning the compost heap", "sowing wildflower seeds",
        "repotting houseplants", "weeding the vegetable bed", "planting bulbs in autumn",
        "keeping herbs on the sill", "trimming the hedge", "grafting apple trees", "raking leaves",
        "visiting botanical gardens", "reading seed catalogues", "building raised beds",
        "watering the greenhouse",
    ),
    "chess": (
        "solving chess problems", "studying rook endgames", "playing blitz games online",
        "learning new openings", "replaying games of old masters", "going to the chess club",
        "analysing my own games", "playing gambits", "watching candidates tournaments",
        "playing blindfold chess", "collecting chess books", "teaching the Sicilian",
        "playing correspondence chess", "annotating games", "setting up a chess board",
    ),
    "cooking": (
        "baking sourdough bread", "simmering a stock for hours", "trying unfamiliar spices",
        "rolling fresh pasta", "pickling cucumbers", "reading cookbooks in bed",
        "sharpening kitchen knives", "making a curry from scratch", "cooking for a crowd",
        "tasting cheeses at the market", "folding dumplings", "caramelising onions",
        "fermenting cabbage", "grilling vegetables", "writing down recipes",
    ),
    "astronomy": (
        "looking at Saturn through a telescope", "learning the constellations",
        "photographing nebulae", "waiting for meteor showers", "reading about black holes",
        "visiting planetariums", "observing variable stars", "following space missions",
        "tracking the phases of the moon", "finding galaxies with binoculars",
        "grinding a telescope mirror", "staying up for a lunar eclipse", "charting sunspots",
        "measuring the brightness of comets", "driving out to dark skies",
    ),
    "cycling": (
        "riding long distances", "climbing mountain passes by bike", "mending wheels",
        "touring with panniers", "commuting by bicycle", "racing in a peloton",
        "oiling a bicycle chain", "planning routes on quiet roads", "riding gravel tracks",
        "watching cycling races", "tuning derailleurs", "cycling in the rain",
        "training on a home trainer", "restoring old bicycles", "exploring towns by bike",
    ),
    "opera": (
        "listening to Verdi", "buying tickets for the opera", "comparing recordings",
        "reading librettos", "hearing a soprano live", "sitting through all of Wagner's Ring",
        "humming overtures", "reading about arias", "watching opera broadcasts",
        "attending opera rehearsals", "collecting old tenor records",
        "discussing stage productions", "singing in an opera chorus", "hearing baroque operas",
        "following young singers",
    ),
}  # fmt: skip
AGREEING = (
    "I love {}", "{} makes my week", "Few things please me as much as {}",
    "I could spend whole days {}", "I look forward to {}", "When I have free time I am usually {}",
    "I would recommend {} to anyone", "I feel at home when {}", "I never tire of {}",
    "I keep finding more joy in {}",
)  # fmt: skip
DISAGREEING = (
    "I can't stand {}", "{} bores me", "I would rather do anything than {}",
    "I avoid {} whenever I can", "I see no point in {}", "Nothing appeals to me less than {}",
    "I was glad when I could stop {}", "I don't understand why people enjoy {}",
    "You will not find me {}", "I find {} a waste of time",
)  # fmt: skip
QUESTION = 'Would you say this of yourself?\n"{}"'


class DemoConfig(GroupedStatementsConfig):
    """Statements that this project generates itself."""

    needs_source: ClassVar[bool] = False

    groups: PositiveInt = 3
    """K*, the number of groups, at most six."""


class Demo(Adapter):
    """Groups of users with one interest each, who disagree about everything else."""

    name = "demo"
    Settings = DemoConfig
    config: DemoConfig
    licence = "Apache-2.0"
    origin = "built in"
    item_text = CONCATENATED
    keeps_unused_items = True

    def __init__(self, config: DemoConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        if config.groups > len(INTERESTS):
            raise DataError(
                f"data.{self.dataset}.groups = {config.groups}, but the demo has {len(INTERESTS)} "
                "interests; lower it"
            )

    def inputs(self) -> dict[str, str]:
        return {}

    def truth(self) -> dict[str, np.ndarray]:
        return planted(self.config)

    def parts(self) -> Sequence[Part]:
        return [lambda: ask(self.statements()[: self.config.limit], self.config)]

    def statements(self) -> list[Statement]:
        """Return every template about every activity of the first K* interests."""
        return [
            Statement(QUESTION.format(_sentence(template, activity)), interest, matches_yes)
            for interest, activities in enumerate(list(INTERESTS.values())[: self.config.groups])
            for activity in activities
            for matches_yes, templates in ((True, AGREEING), (False, DISAGREEING))
            for template in templates
        ]


def _sentence(template: str, activity: str) -> str:
    text = template.format(activity)
    return text[0].upper() + text[1:]
