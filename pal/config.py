"""What pipeline.yaml may say: one frozen model per component, strict loading, no torch.

Four layers, later ones win: the built-in pipeline.yaml, the file in the working directory (or
``--config``), ``--set dotted.key=value``, and the options of a command. ``Settings.origins`` remembers
which layer each value came from.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from pal.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Salt = Annotated[str, Field(min_length=1, max_length=16)]
Count = Annotated[int, Field(ge=0)]


class Component(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True)


class DatasetConfig(Component):
    """What every dataset can be told."""

    source: str | None = None
    """Path of the raw data or ``hf:REPO[@REVISION]``; null: what was prepared last, else the Hub."""
    limit: PositiveInt | None = None
    """Read only the first rows of the source."""
    salt: Salt = "v1"
    """Changes every random choice of the construction: split, order, sides."""


class ComparisonsConfig(DatasetConfig):
    """Sources of real comparisons, whose users and prompts are dealt to populations and splits (data/roles.py)."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, for heads that read the prompt apart (PAL-B); behind its
    prompt, for those that do not. Each view costs its own encoding."""
    validation_user_share: Fraction = 0.1
    """Share of the users kept apart for tuning few-shot settings."""
    test_user_share: Fraction = 0.2
    """Share of the users that no head is trained on, for the few-shot test."""
    min_pairs: PositiveInt = 10
    """Pairs that a new user must have to be judged on; those with fewer are left out and counted."""
    grouping: Literal["prompt", "prompt+items"] = "prompt+items"
    """What is never divided over two splits: rows of one prompt, or also rows that share an item."""


class ImageSourceConfig(ComparisonsConfig):
    """Sources with images, whose bytes stay where they are."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response",)
    """As for text responses; an image is the same item in both."""
    fetch_images: bool = False
    """Whether images that the source names by URL alone are downloaded, from public addresses over http(s)."""
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
    """What strings among the items are; auto: paths and URLs that end like an image are images, all others texts."""


class PickapicConfig(ImageSourceConfig):
    """Pick-a-Pic v1 and v2 (method.md 3.4), whose own splits are kept."""

    validation_user_share: Fraction = 0.0
    """Share of the users kept apart for tuning few-shot settings; none in the published protocol."""
    test_user_share: Fraction = 0.0
    """Share of the users that no head is trained on; none in the published protocol."""
    ties: Literal["keep", "drop", "half", "soft"] = "keep"
    """Pairs labelled 0.5: keep them everywhere; drop them; half: judge by them (one half is earned) but do not train on
    them; soft: train on them (as a target of one half) but do not judge by them."""
    judged_on: Literal["full", "unique"] = "full"
    """The source's validation and test splits, or its validation_unique and test_unique, which repeat rows of those."""
    leaking_rankings: Path | None = None
    """File of the ranking ids to leave out of the test split (.pt, .json, .txt or .csv), for the part of the v2 test
    that PickScore's training did not see; null: leave out none."""


class PickafilterConfig(PickapicConfig):
    """Pick-a-Filter: Pick-a-Pic with a colour filter that one half of the users likes (method.md 3.5)."""

    beta: Fraction = 1.0
    """Share of the pairs in which one image is filtered."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Gain of the favoured colour channel, loss of the opposite one; the published strength is not known to us."""


class GroupedStatementsConfig(DatasetConfig):
    """Groups of users who answer statements alike (method.md 3.2)."""

    groups: PositiveInt = 2
    """K*, the number of groups; group k owns the k-th interest."""
    users: PositiveInt = 100
    """Seen users, dealt to the groups in turn."""
    unseen_users: Count = 50
    """Test users that no head is trained on."""
    validation_users: Count = 20
    """Further unseen users, on whom few-shot settings are tuned."""
    pairs_per_user: PositiveInt = 100
    """Training pairs of a seen user, adaptation pairs of an unseen one."""
    validation_pairs_per_user: PositiveInt = 50
    """Pairs per user from the validation statements."""
    test_pairs_per_user: PositiveInt = 50
    """Pairs per user from the test statements."""
    interests_per_user: PositiveInt = 1
    """Interests that each user of the partition has: the own group's and the next ones."""
    regime: Literal["partition", "mixture"] = "partition"
    """partition: a user has an interest or has it not; mixture: a user's shares of the interests are drawn from
    Dirichlet(1, .., 1), and a statement is answered as a person with its interest would with the interest's share."""
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


class SimulatedConfig(DatasetConfig):
    """Planted prototypes and users in feature space (method.md 3.1)."""

    dim: PositiveInt = 16
    """Feature dimension d."""
    groups: PositiveInt = 3
    """K*, the number of planted prototypes."""
    users: PositiveInt = 100
    """Seen users."""
    unseen_users: Count = 50
    """Test users that no head is trained on."""
    validation_users: Count = 20
    """Further unseen users, on whom few-shot settings are tuned."""
    pairs_per_user: PositiveInt = 100
    """Training pairs of a seen user, adaptation pairs of an unseen one."""
    validation_pairs_per_user: PositiveInt = 50
    """Fresh pairs per user for validation."""
    test_pairs_per_user: PositiveInt = 50
    """Fresh pairs per user for test."""
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
    """Whether the full source must give the published split sizes; false goes on whatever they are."""


class PrismConfig(ComparisonsConfig):
    """PRISM: conversations in which people score the answers of several models."""

    rule: Literal["chosen", "scores"] = "chosen"
    """chosen: at each turn the chosen answer against each other one; scores: all pairs of answers of a turn by their
    scores, equal scores being a tie."""


class PersonalLlmConfig(ComparisonsConfig):
    """PersonalLLM: simulated users who mix the rewards of ten reward models."""

    users: PositiveInt = 100
    """Simulated users of all populations together."""
    alpha: PositiveFloat = 0.1
    """Concentration of the Dirichlet weights: small is one reward model per user, large is everybody alike."""
    pairs_per_user: PositiveInt = 200
    """Prompts drawn per user from the training rows, one pair of responses each."""
    test_pairs_per_user: PositiveInt = 50
    """The same from the test rows."""


class UltraFeedbackPConfig(ComparisonsConfig):
    """UltraFeedback's ratings, answered by users who look at one attribute each."""

    users: PositiveInt = 40
    """Simulated users of all populations together, dealt to the attributes in turn."""
    attributes: Annotated[
        tuple[Literal["helpfulness", "honesty", "instruction_following", "truthfulness"], ...], Field(min_length=1)
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
    """A field per dataset; in keys, ``--dataset`` and saved files its name has hyphens for underscores."""

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


class EncoderConfig(Component):
    """A frozen model and how an item becomes a feature under it."""

    kind: Literal["hf-text", "hf-clip", "open-clip", "identity"] = "hf-text"
    """Which loader reads the model: a transformers text model, a transformers model with image and text towers, an
    OpenCLIP model; ``identity`` stores features that the dataset brings."""
    model: str | None = None
    """Hub repository, local folder, OpenCLIP architecture, or ``random:FAMILY`` for seeded random weights."""
    pretrained: str | None = None
    """OpenCLIP: tag of the weights, or a local file; ``random`` for seeded random weights of the real shape."""
    revision: str = "main"
    """Branch, tag or commit on the Hub; the commit it resolves to is recorded."""
    layer: Annotated[int, Field(le=-1)] = -1
    """-1: the last hidden state, which is what the model's own head reads; -2: the output of the last block but one;
    and so on downwards. Image and text towers: -1 the projected feature, -2 the one before the projection."""
    norm: Literal["pre", "post"] | None = None
    """Layer -1 before or after the final norm; null: after it, and lower layers are always before it."""
    template: str | None = None
    """How an item with context becomes one text: ``chat``, the tokenizer's own chat template; a pattern with
    {context} and {text}; null: both with an empty line between them."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """Over the real tokens: their mean, the first, or the last."""
    max_length: PositiveInt = 512
    """Tokens per item; longer texts are cut and counted. Of an item with context the context is cut first, from its
    start."""
    truncation_side: Literal["left", "right"] = "right"
    """The end at which an item without context is cut."""
    padding_side: Literal["left", "right"] = "right"
    """Where padding stands in a batch; changes nothing beyond rounding."""
    normalize: bool = False
    """Scale each feature to unit L2 norm."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of weights and activations."""
    store_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Dtype in the cache."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    weights_sha256: str | None = None
    """Expected SHA-256 of the weights file; anything else is refused."""
    offline_package: str | None = None
    """Installed Python package whose folder ``model`` holds the same weights, for machines without the Hub."""


class EmbedConfig(Component):
    """Stage one. Every other key names an encoder."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True)
    __pydantic_extra__: dict[str, EncoderConfig]

    token_budget: PositiveInt | Literal["auto"] = "auto"
    """Padded tokens per batch; auto: 4,096 on a CPU, 65,536 on a GPU. A batch that finds no memory is halved."""
    rows_per_shard: PositiveInt | None = None
    """Items per shard, the unit of resume; null: 8,192."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    max_error_rate: Fraction = 0.01
    """Share of failed items above which stage one stops."""
    layers: tuple[Annotated[int, Field(le=-1)], ...] = ()
    """Layers to take in one pass, each into its own cache; empty: the encoder's own ``layer``."""
    workers: PositiveInt | None = None
    """Threads that decode and pad ahead of the model; null: one per core, at most 16."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster on long runs."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Who does the shards: processes here, one per visible GPU; actors of a Ray cluster; tasks of a SLURM array."""
    actors: PositiveInt | None = None
    """Workers of an executor; null: one per visible GPU of this machine or of the Ray cluster, else one."""
    ray_address: str | None = None
    """Address of a running Ray cluster; null: one is started here."""

    @property
    def encoders(self) -> dict[str, EncoderConfig]:
        return self.__pydantic_extra__


class TrainConfig(Component):
    """Stage two: one head."""

    head: str = "pal-b"
    """Name of the head, see ``pal train --help``."""
    k: PositiveInt = 2
    """Number of prototypes."""
    latent_dim: PositiveInt | None = None
    """Dimension d of the preference space; null: that of the features."""
    mlp: str | None = None
    """Architecture of f and g_k, ``mlp{L}-{relu|gelu|linear}-dropout{D}[-residual][-batchnorm]`` or
    ``identity``; null: the head's own default."""
    score: Literal["squared", "distance", "normalised", "angle"] | None = None
    """How an item compares with the ideal point; null: the head's own default."""
    learner: Literal["f(Pw)", "f(P)w", "Pw"] | None = None
    """How PAL-A makes an ideal point of prototypes P and weights w; null: f(Pw)."""
    view: Literal["response", "prompt+response"] | None = None
    """Which items a head compares, in datasets that have both: responses by themselves, or each behind its prompt;
    null: by themselves for heads that read the prompt apart, else behind it."""
    weights: Literal["mixture", "partition", "gumbel"] = "mixture"
    """User weights: the softmax; one-hot at its maximum in evaluation; or with Gumbel noise in training."""
    bound: PositiveFloat | None = None
    """beta: adds the sum of max(0, |a| - beta) over a batch's ideal points to the loss; null: off."""
    ridge: PositiveFloat | None = None
    """Ridge of the linear heads; null: chosen by the validation pairs."""
    loss: Literal["logistic", "hinge"] = "logistic"
    """Loss on the margin."""
    epochs: PositiveInt = 20
    """Passes over the training pairs; the best epoch by validation loss is kept."""
    starts: PositiveInt = 1
    """Initial weights to train from, seed, seed + 1000, ...; the validation loss chooses. Prototypes have local optima:
    PAL-A gains most."""
    batch_size: PositiveInt = 512
    """Pairs per step."""
    lr: PositiveFloat = 3e-3
    """Learning rate of f and g_k."""
    user_lr: PositiveFloat = 5e-2
    """Learning rate of the user logits."""
    prototype_lr: PositiveFloat = 5e-3
    """Learning rate of the prototypes P (PAL-A)."""
    scale_lr: PositiveFloat = 1e-2
    """Learning rate of the logit scale (angle scores)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay of f and g_k; users, prototypes and scale have none."""
    users: PositiveInt | None = None
    """Train on the first so many seen users only; null: on all."""
    pairs_per_user: PositiveInt | None = None
    """Train on at most so many pairs of each seen user (learning curves); null: on all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


class SweepConfig(Component):
    """Many heads at once. Every other key is an axis with a list of values: a setting of ``train``, seed,
    encoder or layer."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True)
    __pydantic_extra__: dict[str, tuple[Any, ...]]

    sampler: Literal["grid", "random", "optuna"] = "grid"
    """All combinations, independent draws, or draws that learn from results (extra optuna)."""
    samples: PositiveInt = 64
    """Heads of a random or optuna sweep."""
    together: Literal["auto"] | PositiveInt = "auto"
    """Heads trained as one stack; auto: measured at the start, 1 is one after another."""
    workers: Literal["auto"] | PositiveInt = "auto"
    """Processes that train stacks side by side, each with the features on its device; auto: one for each GPU."""
    halving: Annotated[int, Field(ge=2)] | None = None
    """h: keep the better 1/h of each stack at a quarter and again at half of the epochs; null: keep all."""
    storage: str | None = None
    """Where Optuna keeps a study that several processes share: a journal file or sqlite:///PATH; null: a
    journal in the sweep's folder."""

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        return self.__pydantic_extra__


class AdaptConfig(Component):
    """New users from a few answers."""

    shots: tuple[Count, ...] = (0, 1, 2, 5, 10, 20, 50, 100)
    """Answers per new user; each larger set contains the smaller ones."""
    method: Literal["map", "sgd"] = "map"
    """map: maximum a posteriori under the seen users' prior; sgd: random start, as the released code."""
    protocol: Literal["strict", "released"] = "strict"
    """strict: tuned on validation users only; released: as the released code, whose few-shot epoch is chosen
    on the test pairs."""
    active: bool = False
    """Whether the answers are asked for in the order that tells most, instead of at random."""
    repeats: PositiveInt = 10
    """Draws of the shots, averaged within each user."""


class EvaluateConfig(Component):
    """Error bars and calibration."""

    bootstrap: PositiveInt = 2000
    """Draws of the user-cluster bootstrap."""
    ece_bins: PositiveInt = 15
    """Equal-mass bins of the calibration error."""
    ties: Literal["half", "drop", "pickscore"] = "half"
    """Pairs labelled as ties: earn one half whatever is predicted; are left out; or may be predicted, by a
    threshold chosen on the validation pairs, as PickScore does."""
    votes: Annotated[int, Field(ge=3)] = 5
    """Answers of other users a pair needs to count as controversial or as consensus."""


class ServeConfig(Component):
    """Rewards over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on; any but loopback asks every caller for a bearer token."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port; 0 takes a free one."""
    max_batch: PositiveInt = 64
    """Rows that the model scores at once, of one request or of several."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """How long an incomplete batch waits for further requests."""
    queue: PositiveInt = 1024
    """Rows that may wait; requests beyond are answered with 429."""
    max_body_bytes: PositiveInt = 8 << 20
    """Largest request; larger ones are answered with 413."""
    store: Path | None = None
    """SQLite file of users adapted at runtime; null: users.sqlite in the working directory."""


class PathsConfig(Component):
    """Folders, relative to the working directory."""

    data: Path = Path("data")
    cache: Path = Path("cache")
    runs: Path = Path("runs")
    sweeps: Path = Path("sweeps")
    exports: Path = Path("exports")


class Config(Component):
    """pipeline.yaml."""

    dataset: str = "demo"
    """Default of --dataset."""
    encoder: str = "minilm"
    """Default of --encoder."""
    seed: Count = 0
    """Default of --seed: initial weights and order of batches."""
    paths: PathsConfig = PathsConfig()
    data: DataConfig = DataConfig()
    embed: EmbedConfig = Field(default_factory=lambda: EmbedConfig.model_validate({}))
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = Field(default_factory=lambda: SweepConfig.model_validate({}))
    adapt: AdaptConfig = AdaptConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()

    def dataset_config(self) -> DatasetConfig:
        """Return the settings of the chosen dataset."""
        known = _keys(DataConfig)
        if self.dataset not in known:
            raise ConfigError(_unknown("dataset", self.dataset, sorted(known)))
        config: DatasetConfig = getattr(self.data, known[self.dataset])
        return config

    def encoder_config(self) -> EncoderConfig:
        """Return the settings of the chosen encoder."""
        if self.encoder not in self.embed.encoders:
            raise ConfigError(_unknown("encoder", self.encoder, sorted(self.embed.encoders)))
        return self.embed.encoders[self.encoder]


@dataclass(frozen=True)
class Settings:
    """A resolved configuration, and for each dotted key the layer its value came from."""

    config: Config
    origins: dict[str, str]


def load(
    file: Path | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolve the configuration.

    ``overrides`` are ``dotted.key=value`` strings, values in YAML; ``options`` maps dotted keys to
    values typed on the command line, None meaning "not given". Raises ConfigError in one sentence.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _merge(tree, _built_in("pipeline.yaml"), "built-in", origins)
    if file is None and Path("pipeline.yaml").is_file():
        file = Path("pipeline.yaml")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}; give an existing file to --config") from error
        _merge(tree, _parse_yaml(text, str(file)), str(file), origins)
    given: list[tuple[str, Any, str]] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes dotted.key=value, got {override!r}")
        given.append((key, _parse_value(text), f"--set {override}"))
    given += [(key, value, "option") for key, value in (options or {}).items() if value is not None]
    _merge_preset(tree, origins, [(key, value) for key, value, _ in given])
    for key, value, origin in given:
        if not (key == "train.head" and value in presets()):
            _merge(tree, _nest(key, value), origin, origins)
    try:
        return Settings(Config.model_validate(tree), origins)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem, origins) for problem in error.errors())
        raise ConfigError(problems) from None


def presets() -> dict[str, dict[str, Any]]:
    """Return the settings of ``train`` that a name of ``--head`` may stand for."""
    return _built_in("presets.yaml")


def _merge_preset(tree: dict[str, Any], origins: dict[str, str], given: Iterable[tuple[str, Any]]) -> None:
    """Put a preset between the files and what was typed, if the head that was chosen last is the name of one."""
    chosen = [value for key, value in given if key == "train.head"]
    name = chosen[-1] if chosen else (tree.get("train") or {}).get("head")
    if name in presets():
        _merge(tree, {"train": presets()[name]}, f"preset {name}", origins)


def _built_in(name: str) -> dict[str, Any]:
    return _parse_yaml(resources.files("pal").joinpath(name).read_text(encoding="utf-8"), f"the built-in {name}")


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ConfigError(f"{name} is not valid YAML{where}; mend it or remove it") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold keys and values, not {type(value).__name__}")
    return value


def _parse_value(text: str) -> Any:
    value = yaml.safe_load(text) if text else None
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def _merge(tree: dict[str, Any], layer: dict[str, Any], origin: str, origins: dict[str, str], prefix: str = "") -> None:
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            below = tree.setdefault(name, {})
            if not isinstance(below, dict):
                below = tree[name] = {}
            _merge(below, value, origin, origins, f"{key}.")
        else:
            tree[name] = value
            origins[key] = origin


def _keys(component: type[BaseModel]) -> dict[str, str]:
    """Return the fields of a component by the key that a user types."""
    return {field.alias or name: name for name, field in component.model_fields.items()}


def _component_at(path: Iterable[Any]) -> type[BaseModel] | None:
    """Return the model class that the keys of ``path`` lead to."""
    component: Any = Config
    for part in path:
        if not (isinstance(component, type) and issubclass(component, BaseModel)):
            return None
        name = _keys(component).get(str(part))
        if name is None:
            return EncoderConfig if component is EmbedConfig else None
        component = component.model_fields[name].annotation
    return component if isinstance(component, type) and issubclass(component, BaseModel) else None


def _sentence(problem: Any, origins: Mapping[str, str]) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(location)
    # a union reports its branch as a further part of the location
    while location and key not in origins and not any(name.startswith(f"{key}.") for name in origins):
        location.pop()
        key = ".".join(location)
    source = f" (from {origins[key]})" if key in origins else ""
    if problem["type"] == "extra_forbidden":
        component = _component_at(location[:-1])
        valid = sorted(_keys(component)) if component else []
        return _unknown(f"key of {'.'.join(location[:-1]) or 'pipeline.yaml'}", location[-1], valid) + source
    if location[:1] == ["embed"] and len(location) == 2 and problem["type"] == "model_type":
        settings = sorted(EmbedConfig.model_fields)
        return (
            f"embed.{location[1]} is neither a setting ({', '.join(settings)}) nor an encoder with its own keys"
            + source
        )
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key} = {problem['input']!r} is not valid: {message}{source}"


def _unknown(what: str, name: str, valid: list[str]) -> str:
    variants = [other for other in valid if other.startswith(f"{name}-")]
    close = variants or difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
    return f"unknown {what} {name!r}{hint} valid: {', '.join(valid)}"


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return a configuration as dotted keys and JSON values, in the order of the file."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(f"{prefix}.{name}" if prefix else name, below)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def load_overrides(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a configuration with some dotted keys replaced; raises ConfigError in one sentence."""
    tree = config.model_dump()
    _merge_preset(tree, {}, values.items())
    for key, value in values.items():
        if not (key == "train.head" and value in presets()):
            _merge(tree, _nest(key, value), f"sweep {key}={value!r}", {})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        origins = {key: "sweep" for key in values}
        raise ConfigError("; ".join(_sentence(problem, origins) for problem in error.errors())) from None
