"""Settings that datasets share, and ``data:`` as a whole. A dataset's own are in data/sources/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pal.config.base import Component, Count, Fraction, Salt, as_details, unknown
from pal.names import require_name

Grouping = Literal["prompt", "prompt+items", "items", "auto"]


class DatasetConfig(Component):
    """What every dataset can be told."""

    needs_source: ClassVar[bool] = True
    """whether rows are read from somewhere; otherwise they are generated"""

    kind: str | None = None
    """Which reader of data/sources/ it is read by; null: the one of the dataset's own name."""
    source: str | None = None
    """Path of the raw data or ``hf:REPO[@REVISION]``; null: what was prepared last, else the
    Hub."""
    limit: PositiveInt | None = None
    """Read only the first rows of the source."""
    salt: Salt = "v1"
    """Changes every random choice of the construction: split, order, sides."""


class ComparisonsConfig(DatasetConfig):
    """Sources of real comparisons: what ``data/splits.py`` needs to assign users to populations and
    prompts to splits."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, for heads that read the prompt apart
    (PAL-B); behind its prompt, for those that do not. Each view costs its own encoding."""
    validation_user_share: Fraction = 0.1
    """Share of the users kept apart for tuning few-shot settings."""
    test_user_share: Fraction = 0.2
    """Share of the users that no head is trained on, for the few-shot test."""
    min_answers: PositiveInt = 1
    """People with fewer comparisons in all are left out and counted."""
    min_pairs: PositiveInt | None = None
    """Pairs of its own split that a new user must have to be evaluated on; those with fewer are
    left out and counted. About a tenth of a user's answers are such pairs. null: the largest of 10,
    5, 2 and 1 that nine of ten new users have."""
    grouping: Grouping = "auto"
    """What is never divided over two splits: ``prompt``, all rows of one prompt; ``prompt+items``,
    also rows of prompts that share an item, unless it answers nearly everything, as Agree does;
    ``items``, each item, so that prompts are in all splits and comparisons of two items in
    different splits are left out and counted; ``auto``: prompt+items, or items where the prompts
    are too few to divide and the items are many. The card says what was taken, and why."""


class ImageSourceConfig(ComparisonsConfig):
    """Sources with images, whose bytes stay where they are."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response",)
    """As for text responses; an image is the same item in both."""
    fetch_images: bool = False
    """Whether images that the source names by URL alone are downloaded, from public addresses over
    http(s)."""
    image_folder: Path = Path("data/images")
    """Where downloaded images are kept, named by the hash of their URL."""
    largest_image: PositiveInt = 20_000_000
    """Bytes of an image above which a download is broken off."""
    fetch_seconds: PositiveFloat = 30.0
    """Time after which a download is given up."""


class PlantedGroupsConfig(DatasetConfig):
    """Users made here, in known groups."""

    groups: PositiveInt = 2
    """K*, the number of groups."""
    users: PositiveInt = 100
    """Seen users, assigned to the groups in turn."""
    unseen_users: Count = 50
    """Test users that no head is trained on."""
    validation_users: Count = 20
    """Further unseen users, on whom few-shot settings are tuned."""
    pairs_per_user: PositiveInt = 100
    """Training pairs of a seen user, adaptation pairs of an unseen one."""
    validation_pairs_per_user: PositiveInt = 50
    """Pairs per user for validation, of items that no other split has."""
    test_pairs_per_user: PositiveInt = 50
    """Pairs per user for test, of items that no other split has."""


class GroupedStatementsConfig(PlantedGroupsConfig):
    """Groups of users who answer statements alike (method.md 3.2); group k owns the k-th
    interest."""

    interests_per_user: PositiveInt = 1
    """Interests that each user of the partition has: the own group's and the next ones."""
    regime: Literal["partition", "mixture"] = "partition"
    """partition: a user has an interest or has it not; mixture: a user's shares of the interests
    are drawn from Dirichlet(1, .., 1), and a statement is answered as a person with its interest
    would with the interest's share."""
    noise: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of answers flipped at random."""


class DataConfig(Component):
    """A key per dataset: those of data/sources/, and any name of your own that has a ``kind``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True
    )
    __pydantic_extra__: dict[str, SerializeAsAny[DatasetConfig]]

    @property
    def datasets(self) -> dict[str, DatasetConfig]:
        """Return the settings of every dataset by its name."""
        return self.__pydantic_extra__

    @staticmethod
    def kinds() -> dict[str, type[DatasetConfig]]:
        """Return the settings class of every kind of dataset."""
        from pal.data.sources import adapters  # its files import this one

        return {name: adapter.Settings for name, adapter in adapters().items()}

    @classmethod
    def settings_class(cls, name: str, settings: Any) -> type[DatasetConfig] | None:
        """Return the class that reads a dataset's settings, None where the kind is not known."""
        return cls.kinds().get(_kind_of(name, settings))

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """Read each dataset's settings by the class of its kind; add those that nobody mentions."""
        if not isinstance(given, Mapping):
            return given
        kinds, resolved = cls.kinds(), {}
        problems: list[InitErrorDetails] = []
        for name, settings in {**{kind: {} for kind in kinds}, **given}.items():
            kind = _kind_of(name, settings)
            if kind not in kinds:
                problems.append(_unknown(name, kind, settings, sorted(kinds)))
                continue
            if name not in kinds:
                require_name("dataset", name)
            try:
                read = kinds[kind].model_validate(settings)
                resolved[name] = read.model_copy(update={"kind": kind})
            except ValidationError as error:
                problems += [as_details(problem, name) for problem in error.errors()]
        if problems:
            raise ValidationError.from_exception_data("data", problems)
        return resolved


def _kind_of(name: str, settings: Any) -> str:
    """Return the kind of a dataset: the given one, else that of its own name."""
    if isinstance(settings, DatasetConfig):
        return settings.kind or name
    given = settings.get("kind") if isinstance(settings, Mapping) else None
    return name if given is None else str(given)


def _unknown(name: str, kind: str, settings: Any, kinds: list[str]) -> InitErrorDetails:
    if kind == name:
        return InitErrorDetails(type="extra_forbidden", loc=(name,), input=settings)
    sentence = unknown("kind of dataset", kind, kinds)
    problem = PydanticCustomError("unknown_kind", "{sentence}", {"sentence": sentence})
    return InitErrorDetails(type=problem, loc=(name, "kind"), input=kind)
