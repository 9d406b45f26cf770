"""Settings of the datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from pal.config.base import Component, Count, Fraction, Salt


class DatasetConfig(Component):
    """What every dataset can be told."""

    source: str | None = None
    """Path of the raw data or ``hf:REPO[@REVISION]``; null: what was prepared last, else the
    Hub."""
    limit: PositiveInt | None = None
    """Read only the first rows of the source."""
    salt: Salt = "v1"
    """Changes every random choice of the construction: split, order, sides."""


class ComparisonsConfig(DatasetConfig):
    """Sources of real comparisons, whose users and prompts are dealt to populations and splits
    (data/roles.py)."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, for heads that read the prompt apart
    (PAL-B); behind its prompt, for those that do not. Each view costs its own encoding."""
    validation_user_share: Fraction = 0.1
    """Share of the users kept apart for tuning few-shot settings."""
    test_user_share: Fraction = 0.2
    """Share of the users that no head is trained on, for the few-shot test."""
    min_pairs: PositiveInt = 10
    """Pairs that a new user must have to be judged on; those with fewer are left out and
    counted."""
    grouping: Literal["prompt", "prompt+items"] = "prompt+items"
    """What is never divided over two splits: rows of one prompt, or also rows that share an
    item."""


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


class PairsColumns(Component):
    """Which column of the user's own data holds what; null: the column of that very name."""

    user_id: str | None = None
    """Who compared; a source without such a column is one user's, called everyone."""
    prompt: str | None = None
    """A text, or messages with role and content."""
    chosen: str | None = None
    """The preferred item, as TRL names it."""
    rejected: str | None = None
    """The other item, as TRL names it."""
    first: str | None = None
    """The first item, where sides are explicit."""
    second: str | None = None
    """The second item, where sides are explicit."""
    label: str | None = None
    """P(first preferred) from 0 to 1; or first, second, tie."""
    split: str | None = None
    """train, val or test, where the source has splits."""


class PairsConfig(ImageSourceConfig):
    """The user's own comparisons: JSON lines, JSON, CSV, Parquet or a dataset on the Hub."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, or behind its prompt."""
    columns: PairsColumns = PairsColumns()
    """Which column holds what."""
    items: Literal["auto", "text", "image"] = "auto"
    """What strings among the items are; auto: paths and URLs that end like an image are images, all
    others texts."""


class PickapicConfig(ImageSourceConfig):
    """Pick-a-Pic v1 and v2 (method.md 3.4), whose own splits are kept."""

    validation_user_share: Fraction = 0.0
    """Share of the users kept apart for tuning few-shot settings; none in the published
    protocol."""
    test_user_share: Fraction = 0.0
    """Share of the users that no head is trained on; none in the published protocol."""
    ties: Literal["keep", "drop", "half", "soft"] = "keep"
    """Pairs labelled 0.5: keep them everywhere; drop them; half: judge by them (one half is earned)
    but do not train on them; soft: train on them (as a target of one half) but do not judge by
    them."""
    judged_on: Literal["full", "unique"] = "full"
    """The source's validation and test splits, or its validation_unique and test_unique, which
    repeat rows of those."""
    leaking_rankings: Path | None = None
    """File of the ranking ids to leave out of the test split (.pt, .json, .txt or .csv), for the
    part of the v2 test that PickScore's training did not see; null: leave out none."""


class PickafilterConfig(PickapicConfig):
    """Pick-a-Filter: Pick-a-Pic with a colour filter that one half of the users likes (method.md
    3.5)."""

    beta: Fraction = 1.0
    """Share of the pairs in which one image is filtered."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Gain of the favoured colour channel, loss of the opposite one; the published strength is not
    known to us."""


class PlantedGroupsConfig(DatasetConfig):
    """Users made here, in known groups."""

    groups: PositiveInt = 2
    """K*, the number of groups."""
    users: PositiveInt = 100
    """Seen users, dealt to the groups in turn."""
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


class PersonaConfig(GroupedStatementsConfig):
    """Anthropic's persona statements."""

    personas: tuple[str, ...] = (
        "interest-in-art",
        "interest-in-literature",
        "interest-in-math",
        "interest-in-music",
        "interest-in-science",
        "interest-in-sports",
    )
    """Statement files; the first K* of them are used."""


class DemoConfig(GroupedStatementsConfig):
    """Statements that this project generates itself."""

    groups: PositiveInt = 3
    """K*, the number of groups, at most six."""


class SimulatedConfig(PlantedGroupsConfig):
    """Planted prototypes and users in feature space (method.md 3.1); every pair is of fresh
    items."""

    dim: PositiveInt = 16
    """Feature dimension d."""
    groups: PositiveInt = 3
    """K*, the number of planted prototypes."""
    regime: Literal["partition", "mixture"] = "partition"
    """True user weights: one prototype each, or Dirichlet(1, .., 1)."""
    map: Literal["identity", "linear", "mlp"] = "linear"
    """True map from feature space to preference space."""
    noise: Annotated[float, Field(ge=0.0)] = 0.0
    """Temperature of the answers: P(first) = sigmoid(margin / noise); 0 answers by the sign."""


class TldrConfig(ComparisonsConfig):
    """Reddit TL;DR comparisons with their workers, dealt as in method.md 3.3."""

    seen_workers: PositiveInt = 10
    """Workers with most training rows, on whom heads are trained."""
    test_worker_rows: PositiveInt = 100
    """Other workers with so many validation rows are the unseen test users."""
    validation_worker_rows: PositiveInt = 50
    """Those with fewer than that, but at least so many, are the unseen validation users."""
    published_sizes: bool = True
    """Whether the full source must give the published split sizes; false goes on whatever they
    are."""


class PrismConfig(ComparisonsConfig):
    """PRISM: conversations in which people score the answers of several models."""

    rule: Literal["chosen", "scores"] = "chosen"
    """chosen: at each turn the chosen answer against each other one; scores: all pairs of answers
    of a turn by their scores, equal scores being a tie."""


class PersonalLlmConfig(ComparisonsConfig):
    """PersonalLLM: simulated users who mix the rewards of ten reward models."""

    users: PositiveInt = 100
    """Simulated users of all populations together."""
    alpha: PositiveFloat = 0.1
    """Concentration of the Dirichlet weights: small is one reward model per user, large is
    everybody alike."""
    pairs_per_user: PositiveInt = 200
    """Prompts drawn per user from the training rows, one pair of responses each."""
    test_pairs_per_user: PositiveInt = 50
    """The same from the test rows."""


class UltraFeedbackPConfig(ComparisonsConfig):
    """UltraFeedback's ratings, answered by users who look at one attribute each."""

    users: PositiveInt = 40
    """Simulated users of all populations together, dealt to the attributes in turn."""
    attributes: Annotated[
        tuple[Literal["helpfulness", "honesty", "instruction_following", "truthfulness"], ...],
        Field(min_length=1),
    ] = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    """What the users look at."""
    pairs_per_user: PositiveInt = 200
    """Pairs drawn per user; fewer where the source has fewer."""
    controversial: bool = True
    """Whether to keep only pairs of which two attributes prefer different responses."""


class HhConfig(ComparisonsConfig):
    """Anthropic's helpful and harmless comparisons, which name no people."""

    users_per_subset: PositiveInt = 20
    """Names that the prompts of each subset are dealt to."""


class DataConfig(Component):
    """A field per dataset; in keys, ``--dataset`` and saved files its name has hyphens for
    underscores."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    persona: PersonaConfig = PersonaConfig()
    demo: DemoConfig = DemoConfig()
    simulated: SimulatedConfig = SimulatedConfig()
    pairs: PairsConfig = PairsConfig()
    pickapic: PickapicConfig = PickapicConfig()
    pickafilter: PickafilterConfig = PickafilterConfig()
    tldr_length: TldrConfig = TldrConfig()
    tldr_real: TldrConfig = TldrConfig()
    prism: PrismConfig = PrismConfig()
    personalllm: PersonalLlmConfig = PersonalLlmConfig()
    ultrafeedback_p: UltraFeedbackPConfig = UltraFeedbackPConfig()
    hh: HhConfig = HhConfig()
