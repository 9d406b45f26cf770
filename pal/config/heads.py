"""Settings of stage two: heads, sweeps, new users, evaluation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from pal.config.base import Component, Count, as_details, as_list

PROTOTYPES = {"auto": 8, "one-taste": 1}
"""K of heads that leave no choice of it"""


class TrainConfig(Component):
    """Stage two: one head."""

    head: str = "pal-b"
    """Name of the head, see ``pal train --help``."""
    k: PositiveInt = 2
    """Number of prototypes; of ``auto`` it is always 8, of which people need as many as they
    are."""
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
    """Which items a head compares, in datasets that have both: responses by themselves, or each
    behind its prompt; null: by themselves for heads that read the prompt apart, else behind it."""
    weights: Literal["mixture", "partition", "gumbel"] = "mixture"
    """User weights: the softmax; one-hot at its maximum in evaluation; or with Gumbel noise in
    training."""
    bound: PositiveFloat | None = None
    """beta: adds the sum of max(0, |a| - beta) over a batch's ideal points to the loss; null:
    off."""
    reads: Literal["prompt", "items", "both"] | None = None
    """What ``auto`` judges: the prompt, by one of two answers that all prompts have (votes); items;
    or items under their prompts; null: by the dataset."""
    priors: Literal["auto", "none"] = "none"
    """auto: what training items have beyond their features is a residual of each, and PAL-A and
    PAL-B are a shared taste with shrunk deviations; none: as the paper has them."""
    sigma: PositiveFloat | None = None
    """How far prototypes may deviate from the shared taste under priors, 1 being as far as that
    taste itself; null: 1, unless validation pairs gain clearly by more."""
    ridge: PositiveFloat | None = None
    """Ridge of the linear heads; null: chosen by the validation pairs."""
    loss: Literal["logistic", "hinge", "smooth-hinge-1", "smooth-hinge-5"] = "logistic"
    """Loss on the margin; smooth hinges have a parabola of this width in place of the corner."""
    loss_over: Literal["pairs", "users"] = "pairs"
    """What counts the same in the loss: each pair, or each user (a pair of a user with n training
    pairs weighs 1/n)."""
    epochs: PositiveInt = 20
    """Passes over the training pairs; the best epoch by validation loss is kept."""
    patience: PositiveInt | None = None
    """End training after so many epochs without a better validation loss; null: never. The loss of
    prototypes that start alike can stand still for some epochs before they part, so few are a
    risk. Heads that are solved, vpl and mrm among them, do not read it."""
    starts: PositiveInt = 1
    """Initial weights to train from, seed, seed + 1000, ...; the validation loss chooses.
    Prototypes have local optima: PAL-A gains most."""
    batch_size: PositiveInt = 512
    """Pairs per step."""
    lr: PositiveFloat = 3e-3
    """Learning rate of f and g_k."""
    user_lr: PositiveFloat = 5e-2
    """Learning rate of the user logits."""
    absent_users: Literal["move", "stay"] = "move"
    """Users without a pair in a batch: moved on by momentum, or left where they are, each with
    steps of their own, as in the released code."""
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
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the matrix products of training steps; auto: what the machine is fast at.
    Weights, distances, losses and whatever is no training step are float32."""
    features: Literal["auto", "memory", "mapped"] = "auto"
    """Where features are while heads are trained: all in memory, or in the cache's files, of which
    each step reads its rows; auto: in memory, unless they are more than three tenths of it."""
    logger: Literal["tensorboard", "wandb"] | None = None
    """Where to watch the training of a run, beside log.csv: both (extras of these names) write into
    the run's folder and send nothing; null: nowhere. Sweeps, folds and heads that are solved at
    once do not log."""

    @property
    def prototypes(self) -> int:
        """K: the setting, or the head's own."""
        return PROTOTYPES.get(self.head, self.k)


class SweepConfig(Component):
    """Many heads at once. Every other key is an axis with a list of values: a setting of ``train``,
    seed, encoder or layer."""

    model_config = ConfigDict(
        extra="allow", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True
    )
    __pydantic_extra__: dict[
        str, Annotated[tuple[Any, ...], BeforeValidator(as_list), Field(min_length=1)]
    ]

    sampler: Literal["grid", "random", "optuna"] = "grid"
    """All combinations, independent draws, or draws that learn from results (extra optuna)."""
    samples: PositiveInt = 64
    """Heads of a random or optuna sweep."""
    together: Literal["auto"] | PositiveInt = "auto"
    """Heads trained as one stack; auto: measured at the start, with halving as many as fit by their
    size; 1 is one after another."""
    executor: Literal["local", "ray"] = "local"
    """Who trains the stacks: processes here, or tasks of a Ray cluster (extra ray)."""
    workers: Literal["auto"] | PositiveInt = "auto"
    """Stacks that are trained side by side, in processes that each have the features on their
    device; auto: one for each GPU, of a Ray cluster without any one for each node."""
    ray_address: str | None = None
    """Address of a running Ray cluster; null: that of RAY_ADDRESS, else one is started here."""
    halving: Annotated[int, Field(ge=2)] | None = None
    """h: keep the better 1/h of each stack at a quarter and again at half of the epochs; null: keep
    all."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """N: train every head on N folds of the prompts, judge it by all of them, and choose in each
    fold by that fold's own validation; null: by the dataset's own splits."""
    storage: str | None = None
    """Where Optuna keeps a study that several processes share: a journal file or sqlite:///PATH;
    null: in this process, made of the sweep's own files whenever it begins."""

    @model_validator(mode="after")
    def _require_settings(self) -> Self:
        """Raise ValidationError for a value that a setting of ``train`` cannot have."""
        problems: list[InitErrorDetails] = []
        for axis in self.axes.keys() & TrainConfig.model_fields.keys():
            for value in self.axes[axis]:
                try:
                    TrainConfig.model_validate({axis: value})
                except ValidationError as error:
                    problems += [as_details(problem) for problem in error.errors()]
        if problems:
            raise ValidationError.from_exception_data("sweep", problems)
        return self

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        return self.__pydantic_extra__


class AdaptConfig(Component):
    """New users from a few answers."""

    shots: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Answers per new user; each larger set contains the smaller ones, and who cannot give the
    largest is left out. null: those of 0, 1, 2, 5, 10, 20, 50 and 100 that at least half of the
    new users can give."""
    method: Literal["map", "sgd"] = "map"
    """map: maximum a posteriori under the seen users' prior; sgd: random start, as the released
    code."""
    protocol: Literal["strict", "released"] = "strict"
    """strict: tuned on validation users only; released: as the released code, whose few-shot epoch
    is chosen on the test pairs."""
    active: bool = False
    """Whether the answers are asked for in the order that tells most, instead of at random."""
    repeats: PositiveInt = 10
    """Draws of the shots, averaged within each user."""


class EvaluateConfig(Component):
    """Error bars and calibration."""

    OF_CELLS: ClassVar[set[str]] = {"ties", "ece_bins"}
    """what every cell depends on, those of few answers and of sweeps included"""

    ece_bins: PositiveInt = 15
    """Equal-mass bins of the calibration error."""
    ties: Literal["half", "drop", "pickscore"] = "half"
    """Pairs labelled as ties: earn one half whatever is predicted; are left out; or may be
    predicted, by a threshold chosen on the validation pairs, as PickScore does."""
    votes: Annotated[int, Field(ge=3)] = 5
    """Answers of other users a pair needs to count as controversial or as consensus."""
