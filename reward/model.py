"""r_u(prompt, item) for anything that has prompts and items: a run or an exported folder as one
scoring object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pal.config import Config, EncoderConfig
from pal.dataset import PreparedDataset
from pal.embed.encoder import locate
from pal.errors import EvaluationError, RewardError
from pal.reward import folder as files
from pal.reward.folder import Contents
from pal.reward.live import Features, Image, Item, LiveEncoder, image_of
from pal.reward.rendering import Prompt, Text, Turns, prompt_item, response_item, turns_of
from pal.reward.users import User, Users
from pal.train.adapt.map import Answers, adapt_map, make_prior
from pal.train.run_record import TrainedHead

ROWS_AT_ONCE = 256
DEFAULT_STRENGTH = 0.3
"""of the prior of new users, where no validation users have tuned it (evaluation.md 3.12)"""
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.2e-1}
"""largest difference of a golden score, relative to the spread of all, that rounding on other
hardware explains"""


@dataclass(frozen=True)
class Row:
    """One thing to score: the item, and the prompt's own item for heads that read it."""

    item: Item
    prompt: Text | None


@dataclass(frozen=True)
class Answer:
    """One user's comparison of two items under a prompt; ``label`` is P(first preferred)."""

    prompt: Prompt
    first: Any
    second: Any
    label: float = 1.0


class RewardModel:
    """A head with the frozen encoder it was trained on.

    ``RewardModel.from_pretrained("exports/NAME")`` or a Hub repository;
    ``RewardModel.from_run(config, run)``.
    """

    def __init__(self, contents: Contents, encoder: LiveEncoder) -> None:
        self.contents = contents
        self.encoder = encoder
        self.head = contents.head.to(encoder.device).eval()
        self.users = Users(contents, encoder.device)
        self.facts = contents.facts
        self.is_image = self.facts["modality"] == "image"

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, revision: str | None = None, device: str = "auto",
        encoder: str | Path | None = None, check: bool = True,
    ) -> RewardModel:  # fmt: skip
        """Load an export from a folder or the Hub.

        ``encoder``: a folder with the encoder's files, where they are not where the export says.
        Raises RewardError if the encoder is not the one of the training, or (``check``) if the
        golden scores are not reproduced.
        """
        place = Path(path_or_repo)
        if not place.is_dir():
            place = download(str(path_or_repo), revision)
        contents = files.read(place)
        name, settings = contents.facts["encoder"]["name"], contents.encoder_config
        if contents.facts["merged"]:
            settings, spec = (
                settings.model_copy(update={"model": str(place), "offline_package": None}),
                None,
            )
            settings = settings.model_copy(update={"weights_sha256": None})
        else:
            spec = contents.facts["encoder"]["spec"]
        if encoder is not None:
            settings = settings.model_copy(update={"model": str(encoder)})
        digests = place / files.DIGESTS
        if (
            spec is None
        ):  # the folder's own base weights; what they give is checked by the golden scores
            live = LiveEncoder(locate(name, settings, digests), choose_device(device))
        else:
            live = LiveEncoder.locate(name, settings, digests, spec, choose_device(device))
        model = cls(contents, live)
        if check:
            require_golden(model, place)
        return model

    @classmethod
    def from_run(cls, config: Config, run: str, device: str = "cpu") -> RewardModel:
        """Open a run as it is, nobody chosen; raises EvaluationError if its encoder has other
        settings now."""
        trained = TrainedHead.load(config.paths.runs / run)
        return cls.of(config, trained, trained.head.users.population().detach(), device)

    @classmethod
    def of(
        cls, config: Config, trained: TrainedHead, code: Tensor, device: str = "cpu"
    ) -> RewardModel:
        """Put a trained head and its encoder together; ``code`` is that of whoever is not named."""
        facts = trained.facts
        encoder = config.embed.encoders.get(facts["encoder"])
        if encoder is None:
            raise EvaluationError(
                f"run {facts['run']} needs encoder {facts['encoder']}; put it under embed:"
            )
        settings = _as_trained(encoder, facts["encoder_spec"])
        digests = Path(config.paths.cache) / ".digests.json"
        source = locate(facts["encoder"], settings, digests)
        if source.spec != facts["encoder_spec"]:
            raise EvaluationError(
                f"run {facts['run']} was trained under other settings of encoder "
                f"{facts['encoder']}; restore them"
            )
        revision = source.revision if len(source.revision) == 40 else settings.revision
        described = {
            "format": files.FORMAT,
            **{key: facts[key] for key in ("run", "dataset", "view", "item_text", "dim", "train", "untrained")},
            **{key: facts[key] for key in ("split_digest", "cache_fingerprint")},
            "modality": modality_of(config, facts["dataset"], settings),
            "encoder": {
                "name": facts["encoder"], "revision": source.revision, "spec": source.spec,
                "settings": settings.model_copy(update={"revision": revision}).model_dump(mode="json"),
            },
            "user": None, "fixed": False, "merged": False, "prior_by_community": False,
        }  # fmt: skip
        prior = None
        if trained.head.users.logits.shape[1]:
            prior = make_prior(trained.head, DEFAULT_STRENGTH)
        return cls(
            Contents(described, trained.head, trained.users, code, prior),
            LiveEncoder(source, device),
        )

    def score(
        self, prompts: Prompt | Sequence[Prompt], responses: Sequence[Any] | None = None,
        users: User | Sequence[User] = None, *, images: Sequence[Any] | None = None,
    ) -> list[float]:  # fmt: skip
        """Return one reward per response (or image): text, or chat messages; an image as path,
        bytes or PIL image.

        One prompt may stand for all rows, and so may one user. ``users`` are ids, mixtures of
        prototypes such as ``{0: 0.3, 1: 0.7}``, or None for whoever the model was exported for;
        strangers are scored as the population. Rewards compare only within a user and a prompt:
        they have no common scale or zero. Raises RewardError naming the first row that cannot be
        scored.
        """
        items = images if responses is None else responses
        if items is None or isinstance(items, str | bytes):
            raise RewardError("score takes a sequence of responses or images, one per row")
        if images is not None and not self.is_image:
            raise RewardError(
                f"this model rewards texts, not images: it was trained on {self.facts['dataset']}"
            )
        each = _spread(prompts, len(items), "prompts", prompts is None or isinstance(prompts, str))
        users = _spread(
            users, len(items), "users", users is None or isinstance(users, str | Mapping)
        )
        rows = [self.row(prompt, item) for prompt, item in zip(each, items, strict=True)]
        rewards, failures = self.score_rows(rows, self.users.codes(users))
        if failures:
            row = min(failures)
            raise RewardError(f"row {row} cannot be scored: {failures[row]}")
        return [float(value) for value in rewards]

    def best_of_n(
        self, prompt: Prompt, candidates: Sequence[Any], user: User = None
    ) -> tuple[int, list[float]]:
        """Return the place of the candidate that a user likes best, and the rewards of all."""
        if not len(candidates):
            raise RewardError("best_of_n needs at least one candidate")
        scores = self.score([prompt] * len(candidates), candidates, [user] * len(candidates))
        return max(range(len(scores)), key=scores.__getitem__), scores

    def row(self, prompt: Prompt, item: Any) -> Row:
        """Render one prompt and item as stage one would; raises RewardError for what cannot be
        one."""
        turns: Turns = turns_of(prompt)
        own = prompt_item(turns) if self.head.uses_prompt else None
        if self.head.uses_prompt and own is None:
            raise RewardError(
                f"head {self.facts['train']['head']} reads the prompt, but a row has none; give "
                "prompts"
            )
        if self.is_image:
            return Row(image_of(item), own)
        return Row(response_item(turns, item, self.facts["view"], self.facts["item_text"]), own)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Row], codes: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Return rewards (n,) float32, and why some rows have none; a bad row is its own affair."""
        rewards = torch.zeros(len(rows))
        failures: dict[int, str] = {}
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            items = self.encoder.features([row.item for row in block])
            prompts = self._prompts(block)
            bad = {**prompts.failures, **items.failures} if prompts else items.failures
            failures.update({start + row: message for row, message in bad.items()})
            good = torch.tensor(
                [row for row in range(len(block)) if row not in bad], dtype=torch.long
            )
            if not len(good):
                continue
            device = self.encoder.device
            prompt = prompts.values[good].to(device) if prompts else None
            own = codes[start + good.to(codes.device)]
            found = self.head.reward(prompt, items.values[good].to(device), own).float().cpu()
            for place in (~torch.isfinite(found)).nonzero().flatten().tolist():
                failures[start + int(good[place])] = "the head gives NaN or infinity"
            rewards[start + good] = found
        return rewards, failures

    def _prompts(self, rows: Sequence[Row]) -> Features | None:
        if not self.head.uses_prompt:
            return None
        return self.encoder.features([row.prompt for row in rows if row.prompt is not None])

    @torch.no_grad()
    def adapt(self, answers: Sequence[Answer]) -> Tensor:
        """Return the code of a new user, (R,), the maximum a posteriori of some answers; everything
        else is frozen.

        Raises RewardError for heads and exports that have no users to add.
        """
        head, prior = self.head, self.contents.prior
        name = self.facts["train"]["head"]
        if not head.users.logits.shape[1]:
            raise RewardError(
                f"head {name} is the same for everybody, so nobody can be adapted to; train pal-a"
            )
        if prior is None:
            raise RewardError(
                "this export holds one fixed reward, so no user can be added; use pal export "
                "--population"
            )
        if not answers:
            raise RewardError("adapting a user needs at least one answer")
        rows = [
            self.row(answer.prompt, item)
            for answer in answers
            for item in (answer.first, answer.second)
        ]
        items = self.encoder.features([row.item for row in rows])
        prompts = self._prompts(rows)
        bad = {**items.failures, **(prompts.failures if prompts else {})}
        if bad:
            row = min(bad)
            raise RewardError(f"answer {row // 2} cannot be read: {bad[row]}")
        device = self.encoder.device
        values = items.values.to(device)
        prompt = prompts.values[::2].to(device) if prompts else None
        prepared = head.prepare(prompt, values[::2], values[1::2])
        label = torch.tensor(
            [answer.label for answer in answers], dtype=torch.float32, device=device
        )
        user = torch.zeros(len(answers), dtype=torch.long, device=device)
        if head.is_amortised:
            return head.infer(prepared, label, user, 1)[0]
        at = replace(prior, mean=prior.mean.to(device), precision=prior.precision.to(device))
        at = replace(at, centres=prior.centres.to(device))
        return adapt_map(head, Answers(prepared, label, user, 1), at).codes[0]


def _spread(values: Any, rows: int, what: str, is_one: bool) -> Sequence[Any]:
    """Return one value per row; raises RewardError where there are as many as something else."""
    if is_one:
        return [values] * rows
    if (
        what == "prompts" and len(values) and isinstance(values[0], Mapping)
    ):  # one conversation, not many
        return [values] * rows
    if len(values) != rows:
        raise RewardError(
            f"{len(values)} {what} for {rows} responses; give one for each, or one for all"
        )
    return list(values)


def _as_trained(settings: EncoderConfig, spec: Mapping[str, Any]) -> EncoderConfig:
    """Take the layer of the training, which embed.layers may have chosen, where nothing else tells
    it."""
    layer = spec.get("layer")
    return settings if layer is None else settings.model_copy(update={"layer": layer})


def modality_of(config: Config, dataset: str, encoder: EncoderConfig) -> str:
    """Return what the dataset's responses are, text or image, for encoders that read both."""
    if encoder.kind == "hf-text":
        return "text"
    if encoder.kind == "identity":
        raise RewardError(
            f"dataset {dataset} brings features and no texts or images, so there is no encoder to "
            "score live with; "
            f"use pal evaluate"
        )
    import pyarrow.compute as pc

    items = PreparedDataset.open(config.paths.data / dataset).items(["modality"])
    return "image" if pc.any(pc.equal(items.column("modality"), "image")).as_py() else "text"


def choose_device(device: str) -> str:
    """Return ``device``, or for ``auto`` the GPU if there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def download(repo: str, revision: str | None) -> Path:
    """Fetch an export from the Hub; raises RewardError where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision))
    except Exception as error:
        raise RewardError(
            f"{repo} is neither a folder nor a Hub repository that can be fetched "
            f"({type(error).__name__}); "
            f"check the name and the network"
        ) from error


def golden_difference(model: RewardModel, golden: dict[str, Any], place: Path) -> float:
    """Return the largest difference between a model's scores of the golden inputs and those on
    record."""
    return max(
        abs(a - b)
        for a, b in zip(score_golden(model, golden["inputs"], place), golden["scores"], strict=True)
    )


def score_golden(model: RewardModel, inputs: Sequence[dict[str, Any]], place: Path) -> list[float]:
    """Score golden inputs for whoever the model was exported for; ``image`` names a file beside
    them."""
    prompts = [row["prompt"] for row in inputs]
    if model.is_image:
        return model.score(prompts, images=[place / row["image"] for row in inputs])
    return model.score(prompts, [row["response"] for row in inputs])


def require_golden(model: RewardModel, place: Path) -> float:
    """Return how well the golden scores are reproduced; raises RewardError where rounding cannot
    explain it."""
    try:
        golden = json.loads((place / files.GOLDEN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RewardError(
            f"{place} has no readable {files.GOLDEN}; export the run again"
        ) from error
    difference = golden_difference(model, golden, place)
    settings = model.encoder.source.config
    spread = max(golden["scores"]) - min(golden["scores"])
    allowed = max(TOLERANCE[settings.compute_dtype], TOLERANCE[settings.store_dtype]) * spread
    if not difference <= max(allowed, 1e-6 * max(map(abs, golden["scores"]))):
        raise RewardError(
            f"{place} gives golden scores that differ by {difference:.3g} from those on record, "
            "more than the "
            f"{allowed:.3g} of rounding; its files or the encoder's have changed: export the run "
            "again"
        )
    return difference


__all__ = ["Answer", "Image", "RewardModel", "Row"]
