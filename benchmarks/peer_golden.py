"""What the released code of the peers makes of the inputs of ``peer_cases.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peer_cases as cases
import torch
from peer_cases import DIM, KINDS, MLP, USERS, Case, K, sines
from peer_code import (
    COMMITS,
    PeerPal,
    chosen_and_rejected,
    copy_maps,
    differences_by_user,
    linear_layers,
    load_file,
)
from torch import Tensor


def pal_losses(folder: Path) -> Case:
    module = load_file(folder, "src/loss_function.py")
    margin, batch = 3.0 * sines(cases.ROWS, shift=0.5), cases.comparisons()
    target = 2.0 * batch.label - 1.0
    found = {
        "hinge": module.hinge_loss(margin, target),
        "logistic": module.nll_logistic_loss(margin, target),
        "smooth-hinge-5": module.hinge_loss_smooth(margin, target),
        "smooth-hinge-1": module.hinge_loss_smooth_crazy(margin, target),
    }
    users = batch.user.tolist()
    for name in ("hinge", "logistic"):
        weighted = module.LossFunction(f"{name}_w")
        weighted.user_importance_dict = {0: 1 / 3, 1: 1 / 2, 2: 1.0}
        found[f"{name}, over users"] = weighted(margin, target, batch_u_ids=users)
    return found


def pal_peer(folder: Path, kind: str) -> PeerPal:
    """Build theirs with the weights of ``cases.pal_head``."""
    ours = cases.pal_head(kind)
    peer = PeerPal.build(folder, kind, DIM, USERS, K, MLP[kind], decay=0.0)
    peer.learner.double()
    own = peer.learner.prefLearner
    copy_maps(ours.f, peer.maps()[:1])
    with torch.no_grad():
        for parameter, row in zip(own.user_learner.W.values(), ours.users.logits, strict=True):
            parameter.copy_(row)
        if isinstance(ours, KINDS["b"]):
            copy_maps(ours.g, peer.maps()[1:])
            own.logit_scale.fill_(cases.SCALE)
        else:
            own.user_learner.P.copy_(ours.prototypes_KD)
    return peer


def pal_parts(peer: PeerPal, of: Callable[[Tensor], Tensor]) -> Case:
    """Return ``of`` the parameters that the cases look at."""
    own = peer.learner.prefLearner
    first = [of(linear_layers(module)[0].weight) for module in peer.maps()]
    users = torch.stack([of(row) for row in own.user_learner.W.values()])
    found = {"users": users, "f": first[0].unsqueeze(0)}
    if peer.kind == "a":
        return found | {"P": of(own.user_learner.P)}
    return found | {"g": torch.stack(first[1:]), "scale": of(own.logit_scale)}


def pal_forward(folder: Path, kind: str) -> Case:
    peer, batch = pal_peer(folder, kind), cases.comparisons()
    peer.learner.prefLearner.update_trainable_params(())
    loss = peer.loss(batch)
    loss.backward()
    return {"margins": peer.margins(batch), "loss": loss} | pal_parts(peer, _gradient)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def pal_steps(folder: Path, kind: str) -> Case:
    peer = pal_peer(folder, kind)
    optimiser = peer.optimiser()
    for batch in cases.batches():
        peer.step(optimiser, batch)
    return pal_parts(peer, lambda parameter: parameter)


def pal_new_users(folder: Path, kind: str) -> Case:
    """Their optimiser on their loss; orders and first logits are those of ``adapt_sgd``."""
    peer, everything = pal_peer(folder, kind), cases.new_answers()
    by_user = everything.user.argsort(stable=True)
    everything = cases.some(everything, by_user)
    peer.add_users(cases.NEW_USERS)
    generator = torch.Generator().manual_seed(cases.NEW_SEED)
    drawn = torch.randn(cases.NEW_USERS, K, generator=generator, dtype=torch.float32).double()
    with torch.no_grad():
        for parameter, row in zip(
            peer.learner.prefLearner.user_learner.W.values(), drawn, strict=True
        ):
            parameter.data = row.clone()
    optimiser = peer.optimiser(new_users=True)
    for _ in range(20):
        order = torch.randperm(len(everything.label), generator=generator)
        for rows in order.split(4):
            peer.step(optimiser, cases.some(everything, rows))
    return {"users": peer.user_logits()}


def lore(folder: Path) -> Case:
    module = load_file(folder, "utils.py")
    peer = module.LoRe(None, 0, USERS, DIM, K, 1, 0.5)
    with torch.no_grad():
        peer.V.copy_(sines(DIM, K, shift=0.7))
        peer.W.copy_(sines(USERS, K, shift=0.8))
    batch = cases.some(cases.comparisons(), torch.arange(6))
    loss, _ = peer(differences_by_user(batch, USERS))
    loss.backward()
    return {"loss": loss, "V": peer.V.grad, "W": peer.W.grad}


def vpl(folder: Path) -> Case:
    module = load_file(folder, "hidden_context/vae_utils.py")
    peer = module.VAEModel(DIM, DIM, DIM, DIM, None, None)
    cases.fill(peer.pair_encoder)
    of_sequence = peer.sequence_encoder
    layers = (of_sequence.w_q, of_sequence.w_k, of_sequence.w_v, of_sequence.mean_layer)
    with torch.no_grad():
        for place, layer in enumerate((*layers, of_sequence.log_var_layer)):
            layer.weight.copy_(sines(DIM, DIM, shift=2.0 + place))
            layer.bias.zero_()
    cases.fill(peer.decoder)
    batch, target = cases.comparisons(users=2), cases.comparisons(2, 2)
    batch = cases.some(batch, batch.user.argsort(stable=True))
    stops = torch.bincount(batch.user).cumsum(0).tolist()
    spans = list(zip([0, *stops[:-1]], stops, strict=True))
    arguments = (target.first, target.second, *chosen_and_rejected(batch), spans, None)
    peer.eval()
    first, second, mean, log_variance, _ = peer(*arguments)
    peer.train()
    torch.manual_seed(0)
    first_then, second_then, _, _, drawn = peer(*arguments)
    return {
        "mean": mean, "log variance": log_variance, "drawn": drawn,
        "margins": (first - second)[:, 0], "margins in training": (first_then - second_then)[:, 0],
    }  # fmt: skip


def mrm(folder: Path) -> Case:
    module = load_file(folder, "train.py")
    peer = module.MRM(DIM, [K], use_bias=False)
    with torch.no_grad():
        peer.layers[0].weight.copy_(sines(K, DIM, shift=0.9))
        peer.shared_weight.copy_(sines(K, shift=1.1))
    batch = cases.comparisons()
    each = sines(5, shift=0.6).abs().requires_grad_()
    total = module.RPO(each, 0.5, 0.5)
    total.backward()
    assert each.grad is not None
    margins = peer(batch.first) - peer(batch.second)
    return {"margins": margins, "worst": total, "slope of worst": each.grad}


def theirs(folders: dict[str, Path]) -> dict[str, Case]:
    """Return the cases of the peers whose checkouts are given, in float64."""
    asked: dict[str, Callable[[], Case]] = {}
    for name, make in (("lore", lore), ("vpl", vpl), ("mrm", mrm)):
        if name in folders:
            asked[name] = lambda make=make, name=name: make(folders[name])  # type: ignore[misc]
    if "pal" in folders:
        asked["pal losses"] = lambda: pal_losses(folders["pal"])
        for kind in KINDS:
            for what, of in (
                ("forward", pal_forward), ("steps", pal_steps), ("new users", pal_new_users),
            ):  # fmt: skip
                asked[f"pal-{kind} {what}"] = lambda of=of, kind=kind: of(folders["pal"], kind)  # type: ignore[misc]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return {name: ask() for name, ask in asked.items()}
    finally:
        torch.set_default_dtype(before)


def as_record(found: dict[str, Case]) -> dict[str, object]:
    """Return what the golden file holds: commits, and lists of numbers by case and name."""
    numbers = {
        case: {name: value.detach().flatten().tolist() for name, value in values.items()}
        for case, values in sorted(found.items())
    }
    return {"commits": COMMITS, "cases": numbers}
