"""``POST /v1/compare``: how probably one response is preferred to another."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

from pal.reward.adaptation import Answer
from pal.reward.comparisons import Comparisons
from pal.reward.server.body import BodyRoute
from pal.reward.server.schemas import CompareReply, CompareRequest
from pal.reward.server.service import Service, require_count


def compare_route(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/compare", tags=["rewards"])
    async def compare(body: CompareRequest) -> CompareReply:
        """How probably each first response is preferred to the second; an odd pair refuses them
        all."""
        count = len(body.first)
        users = body.users if isinstance(body.users, list) else [body.users] * count
        given = (("prompts", body.prompts), ("second", body.second), ("users", users))
        for name, values in given:
            require_count(name, len(values), count, "first responses", "send as many")
        if 2 * count > service.settings.queue:
            raise HTTPException(
                413,
                f"{count} pairs have more rows than the {service.settings.queue} that may wait; "
                "send fewer",
            )
        known = service.model.users

        def read() -> Comparisons:
            pairs = [
                Answer(prompt, *service.reader.sides_of("comparison", number, first, second))
                for number, (prompt, first, second) in enumerate(
                    zip(body.prompts, body.first, body.second, strict=True)
                )
            ]
            asked = Comparisons(service.model, pairs, list(map(known.audience_of, users)))
            service.reader.require_modest(asked)
            return asked

        if not count:
            return CompareReply(p=[], unknown_users=0)
        _, found = await service.solve(count, read)
        if not bool(found.isfinite().all()):
            raise HTTPException(422, "a comparison gives NaN or infinity; send others")
        return CompareReply(p=found.tolist(), unknown_users=sum(map(known.is_stranger, users)))

    return router
