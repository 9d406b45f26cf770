"""What requests and replies are.

OpenRLHF's remote reward (``--reward.remote_url http://HOST:PORT/get_reward``) carries the users in
``labels``, which is the column of ``--data.label_key``: an id, or JSON with ``user_id``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictFloat, StrictInt

MOST_ANSWERS = 512
Chat = str | list[dict[str, Any]]
"""a text or chat messages"""
UserId = str | StrictInt | StrictFloat | dict[str, float] | None
"""an id as text or number, a mixture such as {"0": 0.3, "1": 0.7}, or nobody"""


class OpenRlhfRequest(BaseModel):
    """OpenRLHF sends ``query``: the decoded prompt and response; ``prompts``: the prompts alone;
    ``labels``: users."""

    query: list[str]
    prompts: list[str] = []
    labels: list[Any] = []


class OpenRlhfReply(BaseModel):
    rewards: list[float]
    scores: list[float]
    """rewards as numbers between 0 and 1, by the logistic function"""
    extra_logs: dict[str, list[float]]


class ScoreRequest(BaseModel):
    """``prompts``: null where there is none. ``users``: one for each response, or one for all.

    A model of images takes their files' bytes in base64 for ``responses``.
    """

    prompts: list[Chat | None]
    responses: list[Chat]
    users: list[UserId] | UserId = None


class ScoreReply(BaseModel):
    rewards: list[float]
    unknown_users: int
    """rows whose user is not known, scored as the population"""


class AnswerBody(BaseModel):
    """One comparison by the user; images in base64."""

    prompt: Chat | None = None
    chosen: Chat
    rejected: Chat
    label: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """P(chosen preferred); 0.5 is a tie"""


class AdaptRequest(BaseModel):
    """All answers of a user; they replace what was known of the user."""

    answers: Annotated[list[AnswerBody], Field(min_length=1, max_length=MOST_ANSWERS)]


class AdaptReply(BaseModel):
    user: str
    answers: int
    weights: list[float]


def user_of_label(label: Any) -> Any:
    """Return the user that an OpenRLHF label carries: an id, an object with ``user_id`` or its
    JSON, or nobody."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError):
            return label
    return label.get("user_id") if isinstance(label, dict) else label


def response_of(query: str, prompt: str) -> str:
    """Return what follows the prompt in a query; all of it where the prompt does not lead it."""
    return query.removeprefix(prompt) if prompt else query
