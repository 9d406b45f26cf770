"""OpenRLHF's remote reward: ``POST /get_reward``, by a client that sends no headers of its own."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import APIRouter, HTTPException

from pal.reward.server.body import BodyRoute, aside
from pal.reward.server.schemas import OpenRlhfReply, OpenRlhfRequest
from pal.reward.server.service import QUICK_ROWS, Service, require_count
from pal.reward.tools.openrlhf import Asked, NotRecognised, QueryReader
from pal.reward.tools.silence import spoken

LONGEST_LABEL = 1 << 16


def openrlhf_routes(service: Service) -> APIRouter:
    """Return the route, and the same with the token in its path; raises RewardError where
    ``serve.policy`` has no tokenizer."""
    router = APIRouter(route_class=BodyRoute, tags=["OpenRLHF"])
    reader = QueryReader.of_policy(service.settings.policy)

    @router.post("/get_reward/{token:path}", summary="The same, for clients without headers")
    async def get_reward_by_path(token: str, body: OpenRlhfRequest) -> OpenRlhfReply:
        """OpenRLHF's remote reward, the token in the path, where the guard has read it."""
        return await answer(service, reader, body)

    @router.post("/get_reward")
    async def get_reward(body: OpenRlhfRequest) -> OpenRlhfReply:
        """OpenRLHF's remote reward. Empty lists are answered with empty lists."""
        return await answer(service, reader, body)

    return router


async def answer(service: Service, reader: QueryReader, body: OpenRlhfRequest) -> OpenRlhfReply:
    """Return the rewards of queries: those of their prompts and responses in /v1/score."""
    count = len(body.query)
    if service.model.is_image and count:
        raise HTTPException(
            422, "this model rewards images, which OpenRLHF does not send; use /v1/score"
        )
    for name, values in (("prompts", body.prompts), ("labels", body.labels)):
        if values:
            require_count(name, len(values), count, "queries", "send as many or none")
    longest = 2 * service.settings.max_row_bytes  # the prompt is there twice
    pairs = list(zip(body.query, body.prompts or [None] * count, strict=True))

    def read() -> list[Asked]:
        return [_read(reader, query, prompt, longest) for query, prompt in pairs]

    try:
        asked = read() if count <= QUICK_ROWS else await aside(read)
    except NotRecognised as error:
        raise HTTPException(422, str(error)) from error
    users = [user_of_label(label) for label in body.labels] or [None] * count
    prompts, responses = [one.prompt for one in asked], [spoken(one.response) for one in asked]
    found = await service.score(prompts, responses, users)
    service.metrics.prompts_cut.inc(sum(one.is_cut for one in asked))
    instead = service.settings.reward_of_failed
    rewards = [instead if reward is None else reward for reward in found.rewards]
    return OpenRlhfReply(
        rewards=rewards,
        scores=[None if reward is None else _logistic(reward) for reward in rewards],
        extra_logs={
            "pal_user_known": [float(known) for known in found.is_known],
            "pal_prompt_cut": [float(one.is_cut) for one in asked],
        },
        errors=found.errors,
    )


def _read(reader: QueryReader, query: Any, prompt: Any, longest: int) -> Asked:
    texts = [text for text in (query, prompt) if isinstance(text, str)]
    if sum(map(len, texts)) > longest:  # to be refused by its size
        return Asked(prompt, query)
    return reader.read(query, prompt)


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


def _logistic(reward: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * reward))  # no exponential that could overflow
