"""A trained head as somebody else's reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pal.reward.model import Answer as Answer
    from pal.reward.model import RewardModel as RewardModel


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name not in ("Answer", "RewardModel"):
        raise AttributeError(name)
    from pal.reward import model

    return getattr(model, name)
