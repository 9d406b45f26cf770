"""r_u(prompt, item) for anything that has prompts and items: a run or an export that can score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pal.config import Config, EncoderConfig
from pal.errors import PalError, RewardError
from pal.items import Prompt
from pal.names import require_name
from pal.reward import loading
from pal.reward.adaptation import Answer, Questionnaire, vector_from_answers
from pal.reward.comparisons import compare_each
from pal.reward.each import is_one_prompt, is_one_user, one_for_each, sequence_of
from pal.reward.export_record import Contents, Modality, read_contents
from pal.reward.golden import require_golden
from pal.reward.live import LiveEncoder
from pal.reward.render import Readable, Row, RowReader
from pal.reward.users import User, Users, rewards_of
from pal.train.run_record import TrainedHead

ROWS_AT_ONCE = 256


class RewardModel:
    """A head with the frozen encoder it was trained on.

    ``RewardModel.from_pretrained("exports/NAME")`` or a Hub repository;
    ``RewardModel.from_run(config, run)``.
    """

    def __init__(self, contents: Contents, encoder: LiveEncoder) -> None:
        self.contents = contents
        self.encoder = encoder
        self.metadata = contents.metadata
        self.head = contents.head.to(encoder.device).eval()
        self.users = Users(contents, encoder.device)
        self.is_image = self.metadata.modality == "image"
        self.reader = RowReader(self.metadata, self.head.name, self.head.uses_prompt)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        encoder: str | Path | None = None,
        check: bool = True,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Load an export from a folder or the Hub.

        ``encoder``: a folder with the encoder's files, where they are not where the export says.
        ``trust_remote_code``: whether an encoder that was trained with code from its repository may
        run it; the export itself cannot allow it. Raises RewardError if the encoder is not the one
        of the training, or (``check``) if the golden scores are not reproduced.
        """
        folder = loading.folder_of(path_or_repo, revision)
        contents = read_contents(folder)
        live = loading.load_encoder(folder, contents.metadata, device, encoder, trust_remote_code)
        model = cls(contents, live)
        if check:
            require_golden(model, folder)
        return model

    @classmethod
    def from_run(cls, config: Config, run: str, device: str = "cpu") -> RewardModel:
        """Open a run as it is, nobody chosen.

        Raises EvaluationError if its encoder has other settings now.
        """
        trained = TrainedHead.load(config.paths.runs / require_name("run", run, RewardError))
        encoder = loading.encoder_of_run(config.embed, trained.metadata)
        modality = loading.modality_of(config.paths.data / trained.metadata.dataset, encoder)
        return cls.of(trained, encoder, config.paths.cache / ".digests.json", modality, device)

    @classmethod
    def of(
        cls,
        trained: TrainedHead,
        encoder: EncoderConfig,
        digests: Path,
        modality: Modality = "text",
        device: str = "cpu",
    ) -> RewardModel:
        """Put a trained head and its encoder together; ``digests`` remembers hashes of weights."""
        return cls(*loading.open_run(trained, encoder, digests, modality, device))

    def score(
        self,
        prompts: Any,
        responses: Sequence[Any] | None = None,
        users: Any = None,
        *,
        images: Sequence[Any] | None = None,
    ) -> list[float]:
        """Return one reward per response (or image): text, or chat messages; an image as path,
        bytes or PIL image.

        One prompt may stand for all rows, and so may one user. ``users`` are ids, mixtures of
        prototypes such as ``{0: 0.3, 1: 0.7}``, or None for whoever the model was exported for;
        strangers, and nobody where the export is of the population, have the mean of the rewards of
        all seen users. Rewards compare only within a user and a prompt:
        they have no common scale or zero. Raises RewardError naming the first row that cannot be
        scored.
        """
        items = sequence_of(images if responses is None else responses, "responses or images")
        if images is not None and not self.is_image:
            raise RewardError(
                f"this model rewards texts, not images: it was trained on {self.metadata.dataset}"
            )
        count = len(items)
        each_prompt = one_for_each(prompts, count, "prompts", is_one_prompt(prompts))
        each_user = one_for_each(users, count, "users", is_one_user(users))
        rewards, failures = self.score_each(each_prompt, items, each_user)
        if failures:
            first = min(failures)
            raise RewardError(f"row {first} cannot be scored: {failures[first]}")
        return [reward for reward in rewards if reward is not None]

    def score_each(
        self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]
    ) -> tuple[list[float | None], dict[int, str]]:
        """Return a reward per row, None where one cannot be scored, and the reason by row.

        There are as many prompts and users as items, so that no odd one can be taken for all.
        """
        read = self.read(prompts, items, users)
        found, failures = self.score_rows(read.rows, read.vectors)
        rewards: list[float | None] = [None] * len(items)
        for number, (place, reward) in enumerate(zip(read.places, found.tolist(), strict=True)):
            if number not in failures:
                rewards[place] = reward
        later = {read.places[number]: reason for number, reason in failures.items()}
        return rewards, {**read.failures, **later}

    def read(self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]) -> Readable:
        """Render rows as stage one would; what cannot be read costs only its own row."""
        rows, vectors, places = [], [], []
        failures: dict[int, str] = {}
        for place, (prompt, item, user) in enumerate(zip(prompts, items, users, strict=True)):
            try:
                vector, row = self.users.vector_of(user), self.row(prompt, item)
            except PalError as error:
                failures[place] = str(error)
                continue
            rows.append(row)
            vectors.append(vector)
            places.append(place)
        stacked = torch.stack(vectors) if vectors else self.users.default[None][:0]
        return Readable(rows, stacked, places, failures)

    def best_of_n(
        self, prompt: Prompt, candidates: Sequence[Any], user: User = None
    ) -> tuple[int, list[float | None]]:
        """Return the place of the candidate that a user likes best, and the rewards of all.

        A candidate that cannot be scored has None. Raises RewardError where that are all.
        """
        if not len(candidates):
            raise RewardError("best_of_n needs at least one candidate")
        count = len(candidates)
        rewards, failures = self.score_each([prompt] * count, candidates, [user] * count)
        scored = [(reward, -place) for place, reward in enumerate(rewards) if reward is not None]
        if not scored:
            raise RewardError(f"no candidate can be scored; the first: {failures[0]}")
        return -max(scored)[1], rewards

    def row(self, prompt: Prompt, item: Any) -> Row:
        """Render one prompt and item as stage one would; raises PalError for what cannot be one."""
        return self.reader.row(prompt, item)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Row], vectors: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Return rewards (n,) float32 for user vectors (n, R), and why some rows have none.

        A row that cannot be scored has a reason; the others have their rewards.
        """
        rewards = torch.zeros(len(rows))
        failures: dict[int, str] = {}
        device = self.encoder.device
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            items, prompts, bad = self.features(block)
            failures.update({start + row: message for row, message in bad.items()})
            good = torch.tensor([row for row in range(len(block)) if row not in bad])
            if not len(good):
                continue
            prompt = None if prompts is None else prompts[good].to(device)
            own = vectors[start + good.to(vectors.device)]
            found = rewards_of(self.head, prompt, items[good].to(device), own.to(device))
            found = found.float().cpu()
            for place in (~torch.isfinite(found)).nonzero().flatten().tolist():
                failures[start + int(good[place])] = "the head gives NaN or infinity"
            rewards[start + good] = found
        return rewards, failures

    def features(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor | None, dict[int, str]]:
        """Return the features of items and, for heads that read them, of prompts, (n, D) each, and
        why some rows have none."""
        items = self.encoder.features([row.item for row in rows])
        if not self.head.uses_prompt:
            return items.values, None, items.failures
        prompts = self.encoder.features([row.prompt for row in rows if row.prompt is not None])
        return items.values, prompts.values, {**prompts.failures, **items.failures}

    def adapt(self, answers: Sequence[Answer]) -> Tensor:
        """Return the vector of a new user, (R,), from some answers; everything else is frozen."""
        return vector_from_answers(self, answers)

    def learn(self, user: str | int, answers: Sequence[Answer]) -> None:
        """Add a new user from some answers: the vector, and for ``compare`` who the user may be.

        The prior is the one that ``pal adapt`` has for as many answers, if the model is an export;
        of a run that is opened as it is, one of the usual strength.
        """
        asked = Questionnaire(self, answers)
        asked.encode(len(asked.rows))
        self.users.add(user, asked.solve(), asked.newcomer)

    def compare(
        self,
        prompts: Any,
        first: Sequence[Any],
        second: Sequence[Any],
        users: Any = None,
    ) -> list[float]:
        """Return P(first preferred) of each pair of responses or images, one for each or one for
        all as in ``score``.

        Of a user of whom little is known it is an average over who it may be (audience.py): more
        careful than the sigmoid of a difference of two rewards. Raises RewardError naming the first
        pair that cannot be read.
        """
        count = len(sequence_of(first, "first responses or images"))
        given = sequence_of(second, "second responses or images")
        sides = one_for_each(given, count, "second responses", False)
        each_prompt = one_for_each(prompts, count, "prompts", is_one_prompt(prompts))
        each_user = one_for_each(users, count, "users", is_one_user(users))
        found, failures = compare_each(self, each_prompt, first, sides, each_user)
        if failures:
            place = min(failures)
            raise RewardError(f"comparison {place} cannot be read: {failures[place]}")
        return [p for p in found if p is not None]


__all__ = ["Answer", "RewardModel", "Row", "User"]
