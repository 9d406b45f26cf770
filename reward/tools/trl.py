"""A reward model inside TRL's trainers: each completion is rewarded as the user of its dataset row
would.

    trainer = GRPOTrainer(model, reward_funcs=PalReward("exports/NAME"), train_dataset=dataset, ...)

The dataset needs a column with the users (``user_id``): texts or numbers, null for nobody. For one
fixed user, a module does as well: the folder itself as ``reward_funcs``, after ``import
pal.reward.tools.hf`` if it is no merged one. Its rewards are the same where the dataset's prompts
are chats; plain prompts are joined to their answers by TRL, without the words between them that
stage one writes.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pal.errors import PalWarning, RewardError
from pal.reward.model import RewardModel
from pal.reward.tools.silence import spoken


class PalReward:
    """A ``reward_funcs`` callable of GRPO and RLOO; deliberately no module, which TRL would feed
    tokens."""

    def __init__(
        self,
        model: RewardModel | str | Path,
        user_column: str | None = "user_id",
        name: str = "pal_reward",
    ) -> None:
        """``user_column`` None rewards all rows as whoever the model was exported for."""
        self.model = model if isinstance(model, RewardModel) else RewardModel.from_pretrained(model)
        self.user_column = user_column
        self.__name__ = name  # what TRL logs it under

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward per completion; None, which trainers leave out, where there is none.

        An empty completion is rewarded as silence (silence.py): left out, it would count as zero.
        Logged are the shares ``NAME/unknown_users`` and ``NAME/not_rewarded``. Raises RewardError
        where the users' column did not arrive.
        """
        users: Sequence[Any] = [None] * len(completions)
        if self.user_column is not None:
            if self.user_column not in columns:
                raise RewardError(
                    f"the trainer passed no column {self.user_column!r}; add it to the dataset "
                    "and keep remove_unused_columns=False, or give PalReward user_column=None for "
                    "one reward for all"
                )
            users = columns[self.user_column]
        answers = list(map(spoken, completions))
        rewards, failures = self.model.score_each(list(prompts), answers, list(users))
        if failures:
            warnings.warn(
                f"a completion has no reward, which TRL leaves out: {failures[min(failures)]}",
                PalWarning,
                stacklevel=2,
            )
        if log_metric is not None:
            rewarded = [user for row, user in enumerate(users) if row not in failures]
            unknown = sum(map(self.model.users.is_stranger, rewarded))
            for metric, count in (("unknown_users", unknown), ("not_rewarded", len(failures))):
                log_metric(f"{self.__name__}/{metric}", count / max(1, len(completions)))
        return rewards


class AsyncPalReward(PalReward):
    """The same for trainers that wait for several rewards at once: scoring runs in a thread."""

    async def __call__(  # type: ignore[override]
        self, *args: Any, **columns: Any
    ) -> list[float | None]:
        return await asyncio.to_thread(PalReward.__call__, self, *args, **columns)
