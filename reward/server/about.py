"""``GET /v1/model``: what the model is, and whom it knows."""

from __future__ import annotations

from itertools import islice

from fastapi import APIRouter

from pal.reward.server.guard import is_only_here
from pal.reward.server.schemas import ModelReply
from pal.reward.server.service import Service
from pal.reward.users import prototypes_of
from pal.train.heads.users import ReadyWeights, UserWeights

NAMES_TOLD = 100


def model_route(service: Service) -> APIRouter:
    """Return the route that tells what is served."""
    router = APIRouter(tags=["service"])

    @router.get("/v1/model")
    async def model() -> ModelReply:
        """What the model is, and whom it knows."""
        return described(service)

    return router


def described(service: Service) -> ModelReply:
    """Return what the model is. Names are told where only this machine can ask: whoever asks from
    elsewhere might learn who the people of the training were."""
    metadata, users = service.model.metadata, service.model.users
    names: dict[str, None] = {}
    if is_only_here(service.settings, service.token):
        known = [*islice(users.added, NAMES_TOLD), *islice(users.number, NAMES_TOLD)]
        names = dict.fromkeys(known)  # of the training, too, may be adapted here
    is_mixture = isinstance(users.head.users, UserWeights | ReadyWeights)
    return ModelReply(
        run=metadata.run,
        dataset=metadata.dataset,
        head=metadata.train.head,
        k=metadata.train.k,
        encoder=metadata.encoder.name,
        revision=metadata.encoder.revision,
        view=metadata.view,
        modality=metadata.modality,
        untrained=metadata.untrained,
        choice=metadata.choice if metadata.user is None else "user",
        users=len(users.number),
        adapted=len(users.added),
        names=list(names)[:NAMES_TOLD],
        mixes=prototypes_of(users.head) if is_mixture and not metadata.fixed else 0,
        adapts=users.default.numel() > 0 and service.model.contents.prior is not None,
        version=metadata.pal_version,
    )
