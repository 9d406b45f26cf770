"""What requests and replies are.

Rows are checked one by one where they are scored, so that an odd one costs only itself; here only
what concerns a request as a whole is.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field, WithJsonSchema

MOST_ANSWERS = 512
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
    """OpenRLHF sends ``query``: the decoded prompt and response, with all special tokens;
    ``prompts``: the prompts as its dataset wrote them; ``labels``: the column of
    ``--data.label_key``, a user's id or JSON with ``user_id``."""

    query: Texts
    prompts: Texts = []
    labels: Labels = []


class OpenRlhfReply(BaseModel):
    """A row that cannot be scored has null, or ``serve.reward_of_failed``, and a reason."""

    rewards: list[float | None]
    scores: list[float | None]
    """rewards as numbers between 0 and 1, by the logistic function"""
    extra_logs: dict[str, list[float]]
    """for the trainer's logs: ``pal_user_known``, and ``pal_prompt_cut`` where the client has cut
    the beginning of a prompt; the reward is for the whole one"""
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


class CompareRequest(BaseModel):
    """Pairs of responses (files of images in base64) to one prompt each; ``users`` as in
    /v1/score."""

    prompts: Chats
    first: Chats
    second: Chats
    users: UserOrUsers = None


class CompareReply(BaseModel):
    p: list[float]
    """P(first preferred): of strangers the average over all users of the training, of users who
    were adapted over who they may be by their answers"""
    unknown_users: int


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
