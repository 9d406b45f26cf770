"""How ``auto`` is found: features of things by similarity to landmarks, the strength of the priors
and the metric by inner cross-fitting, everything else by one fit (pal.train.solve.posterior)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.heads.auto import Auto, OneTaste
from pal.train.solve.choose import DEFAULT, NONE, WEAKER, Choice, choose
from pal.train.solve.mixture import Array, Judgements, Mixture, Numbers, settled
from pal.train.solve.posterior import fit
from pal.train.solve.problem import Problem
from pal.train.solve.similar import Similarities
from pal.train.two_answers import ANSWERS, Apart

KNOWN = 4096
"""at most: those with the most answers"""
ITERATIONS = 150
SIDE_RIDGE, CLEAR = 1e-6, 0.95
"""of the regression that tells the side of an answer, and the share that it must tell rightly"""


def solve_auto(head: Auto, problem: Problem, settings: TrainConfig) -> None:
    """Find all numbers of the head from the training pairs; validation pairs are not read.

    Raises TrainError where ``reads`` is prompt and the pairs do not have the same two answers.
    """
    points, rows = judgements(head, problem)
    seed = int(torch.randint(2**31, ()))  # from the generator that the seed of the run has set
    order = np.random.default_rng(seed).permutation(len(points))

    def similarities(things: Numbers) -> Similarities:
        return Similarities.of(points, order[np.isin(order, things)])

    k = head.users.logits.shape[1] - 1
    path = NONE if isinstance(head, OneTaste) else (DEFAULT, *WEAKER)
    choice = choose(similarities, rows, len(points), k, seed, path)
    similar = Similarities.of(points, order)
    features = similar.features_of()
    found = _fitted(features, rows, k, choice, seed)
    for _ in range(choice.rounds):
        similar = similar.sharpened(found)
        features = similar.features_of()
        found = _fitted(features, rows, k, choice, seed)

    scales = np.array([choice.of_shared, *[choice.of_own] * k])
    maps, offsets = similar.folded(found.maps * scales)
    offsets[0] += found.base
    head.landmarks.points_LD = similar.landmarks.points_LD
    head.landmarks.metric_RD = similar.landmarks.metric_RD
    head.maps_LM.data, head.offsets_M.data = _single(maps, points), _single(offsets, points)
    numbers = np.column_stack([found.ready, found.logits])
    head.users.logits.data = _single(numbers, points)
    head.tau.fill_(choice.strength.tau)
    most = _most_judged(rows, len(points))
    head.known.points_TD = points[torch.from_numpy(most).to(points.device)]
    # what a known thing's text was not allowed to say, its residual says
    withheld = features[most] @ (found.maps * (1.0 - scales))
    head.known.residuals_TC = _single(found.residuals[most] + withheld, points)
    head.known.sure_T = _single(settled(found, features, rows)[most], points)


def judgements(head: Auto, problem: Problem) -> tuple[Tensor, Judgements]:
    """Return the features of the things of the training pairs, (T, X), and the answers about
    them."""
    pairs = problem.train
    label, user = pairs.label.double().cpu().numpy(), pairs.user.cpu().numpy()
    if head.reads == "prompt":
        assert pairs.prompt is not None
        agrees = find_answers(head, problem)
        things, thing = pairs.prompt.unique(return_inverse=True)
        points = head.things(problem.features[things], problem.features[things])
        said = np.where(agrees, label, 1.0 - label)
        return points, Judgements(thing.cpu().numpy(), None, user, said, problem.users)
    prompt = torch.zeros_like(pairs.first) if pairs.prompt is None else pairs.prompt
    if head.reads == "items":
        prompt = torch.zeros_like(pairs.first)
    both = torch.stack([torch.cat([prompt, prompt]), torch.cat([pairs.first, pairs.second])])
    things, thing = both.unique(dim=1, return_inverse=True)
    points = head.things(problem.features[things[0]], problem.features[things[1]])
    first, second = thing.cpu().numpy().reshape(2, -1)
    return points, Judgements(first, second, user, label, problem.users)


def find_answers(head: Auto, problem: Problem) -> NDArray[np.bool_]:
    """Let the head know the two answers, and return for each pair whether the first item is the
    one that stands for agreeing, (n,): of two items the first; of many, one end of the direction
    in which most pairs differ.

    Raises TrainError where the items are not two answers.
    """
    pairs, features = problem.train, problem.features
    assert pairs.prompt is not None
    item, row = torch.cat([pairs.first, pairs.second]).unique(return_inverse=True)
    prompt, asked = pairs.prompt.unique(return_inverse=True)
    points = head.item_scale(features[item]).double()
    first, second = row.reshape(2, -1)
    agrees = first == 0 if len(item) == ANSWERS else Apart.of(points, first, second).first_agrees()
    # each answer to each prompt on each side once, and how often it is there
    number = (asked.repeat(2) * len(item) + row) * 2 + torch.cat([agrees, ~agrees])
    distinct, count = number.unique(return_counts=True)
    of_prompt, of_item = distinct // (2 * len(item)), distinct // 2 % len(item)
    side, share = (distinct % 2).double() - 0.5, count.double() / len(number)
    known = torch.cat([points[of_item], head.prompt_scale(features[prompt]).double()[of_prompt]], 1)
    known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
    moment = known.T @ (known * share.unsqueeze(1))
    moment.diagonal().add_(SIDE_RIDGE)
    found = torch.linalg.solve(moment, known.T @ (side * share))
    size = len(head.side_item_D)
    head.side_item_D.copy_(found[:size])
    head.side_prompt_D.copy_(found[size : 2 * size])
    head.side_base.copy_(found[-1])
    told = head.sides(features[prompt][of_prompt], features[item][of_item])
    if float((told * side > 0).double() @ share) < CLEAR:
        raise TrainError(
            f"train.reads = 'prompt' is for the same two answers to every prompt, but the "
            f"{len(item):,} items of the comparisons are not; leave it null"
        )
    return agrees.cpu().numpy()


def _fitted(features: Array, rows: Judgements, k: int, choice: Choice, seed: int) -> Mixture:
    rng = np.random.default_rng([seed, 1])
    return fit(features, rows, k, choice.strength, rng, ITERATIONS)


def _most_judged(rows: Judgements, things: int) -> Numbers:
    count = np.bincount(rows.first, minlength=things)
    if rows.second is not None:
        count = count + np.bincount(rows.second, minlength=things)
    most: Numbers = np.sort(np.argsort(-count, kind="stable")[:KNOWN])
    return most


def _single(values: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(like)
