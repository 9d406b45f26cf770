"""What requests and replies are.

Rows are checked one by one where they are scored, so that an odd one costs only itself; here only
what concerns a request as a whole is. OpenRLHF's remote reward (``--reward.remote_url
http://HOST:PORT/get_reward``) carries the users in ``labels``, which is the column of
``--data.label_key``: an id, or JSON with ``user_id``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field, WithJsonSchema

MOST_ANSWERS, LONGEST_LABEL = 512, 1 << 16
CHAT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
    "description": "a text or chat messages",
}
USER = {
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "object"}, {"type": "null"}],
    "description": 'an id, a mixture such as {"0": 0.3, "1": 0.7}, or nobody',
}
Chat = Annotated[Any, WithJsonSchema(CHAT)]
Chats = Annotated[list[Any], WithJsonSchema({"type": "array", "items": CHAT})]
Texts = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "string"}})]
Labels = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {}})]
UserOrUsers = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "array", "items": USER}, *USER["anyOf"]]})
]


class OpenRlhfRequest(BaseModel):
    """OpenRLHF sends ``query``: the decoded prompt and response; ``prompts``: the prompts alone;
    ``labels``: users."""

    query: Texts
    prompts: Texts = []
    labels: Labels = []


class OpenRlhfReply(BaseModel):
    """A row that cannot be scored has null, or ``serve.reward_of_failed``, and a reason."""

    rewards: list[float | None]
    scores: list[float | None]
    """rewards as numbers between 0 and 1, by the logistic function"""
    extra_logs: dict[str, list[float]]
    errors: dict[int, str]
    """the reason by row"""


class ScoreRequest(BaseModel):
    """``prompts``: null where there is none. ``users``: one for each response, or one for all.

    A model of images takes their files' bytes in base64 for ``responses``.
    """

    prompts: Chats
    responses: Chats
    users: UserOrUsers = None


class ScoreReply(BaseModel):
    """A row that cannot be scored has null and a reason."""

    rewards: list[float | None]
    errors: dict[int, str]
    """the reason by row"""
    unknown_users: int
    """rows whose user is not known, scored as the population"""


class AnswerBody(BaseModel):
    """One comparison by the user; images in base64."""

    prompt: Chat = None
    chosen: Chat
    rejected: Chat
    label: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """P(chosen preferred); 0.5 is a tie"""


class AdaptRequest(BaseModel):
    """All answers of a user; they replace what was known of the user."""

    answers: Annotated[list[AnswerBody], Field(min_length=1, max_length=MOST_ANSWERS), FailFast()]


class AdaptReply(BaseModel):
    user: str
    answers: int
    weights: list[float]


def user_of_label(label: Any) -> Any:
    """Return the user that an OpenRLHF label carries: an id, an object with ``user_id`` or its
    JSON, or nobody."""
    is_short = isinstance(label, str) and len(label) <= LONGEST_LABEL
    if is_short and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError):
            return label
    return label.get("user_id") if isinstance(label, dict) else label


def response_of(query: Any, prompt: Any) -> Any:
    """Return what follows the prompt in a query; all of it where the prompt does not lead it."""
    if isinstance(query, str) and isinstance(prompt, str):
        return query.removeprefix(prompt)
    return query
