"""Features of things by their similarity to some of them, and the metric that says which
directions count, learned from a fit.

A map that depends on a product of two directions, or on a few of many, needs more things than
there are when all directions count alike. The gradients of what was fitted tell which ones matter:
their average outer product is the metric of the next fit (recursive feature machines; Radhakrishnan
et al., Science 383, 2024). Shapes: T things, X numbers of a thing, L landmarks, F features, M maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pal.train.heads.landmarks import Landmarks
from pal.train.sharing import Array, Numbers
from pal.train.solve.mixture import Mixture

LANDMARKS = 600
"""at most"""
FLAT = 1e-8
"""share of the largest spread below which a direction among the landmarks is none"""
BLUNT = 1e-3
"""share of the largest slope below which a direction does not count"""
AT_ONCE = 16_384
"""things whose similarities are computed together"""


@dataclass(frozen=True)
class Similarities:
    """Features of things: their similarities to landmarks, made orthogonal (Nystroem), with a mean
    of zero and a mean squared norm of one over the things that are known. They are computed when
    they are asked for: those of many things are large, and an inner fold needs its own alone."""

    points: Tensor
    """(T, X) of all things"""
    known: Numbers
    """things, of which the first are the landmarks"""
    landmarks: Landmarks
    mix: Array
    """(L, F)"""
    centre: Array
    """(F,)"""
    size: float

    @classmethod
    def of(cls, points: Tensor, known: Numbers, metric: Tensor | None = None) -> Similarities:
        """Make features of things (T, X) from those that are known; ``metric`` (R, X)."""
        landmarks = Landmarks(points.shape[1]).to(points.device)
        chosen = torch.from_numpy(known).to(points.device)
        landmarks.points_LD = points[chosen[:LANDMARKS]]
        if metric is not None:
            landmarks.metric_RD = metric
        spread, directions = np.linalg.eigh(_double(landmarks(landmarks.points_LD)))
        kept = spread > FLAT * spread.max()
        mix = directions[:, kept] / np.sqrt(spread[kept])
        bare = cls(points, known, landmarks, mix, np.zeros(mix.shape[1]), 1.0)
        similar = bare.features_of(known)
        centre = similar.mean(axis=0)
        size = float(np.sqrt(np.square(similar - centre).sum(axis=1).mean())) or 1.0
        return replace(bare, centre=centre, size=size)

    def features_of(self, things: Numbers | None = None) -> Array:
        """Return the features of some things, or of all, (t, F)."""
        things = np.arange(len(self.points)) if things is None else things
        found = np.empty((len(things), self.mix.shape[1]))
        for start in range(0, len(things), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            chosen = torch.from_numpy(things[here]).to(self.points.device)
            similar = _double(self.landmarks(self.points[chosen])) @ self.mix
            found[here] = (similar - self.centre) / self.size
        return found

    def folded(self, maps: Array) -> tuple[Array, Array]:
        """Return what similarities are multiplied with, (L, M), and what is added, (M,), in place
        of maps (F, M) of features."""
        return self.mix @ maps / self.size, -self.centre @ maps / self.size

    def sharpened(self, fitted: Mixture) -> Similarities:
        """Return features under the metric of what was fitted: the average outer product of the
        gradients of the users' margins at the landmarks. The same ones where nothing has a
        slope."""
        maps, _ = self.folded(fitted.maps)
        weights = np.column_stack([np.ones(len(fitted.weights)), fitted.weights])
        spread, directions = np.linalg.eigh(weights.T @ weights / len(weights))
        # as many columns as maps, whose gradients have the sum of squares of those of all users
        maps = maps @ directions * np.sqrt(spread.clip(min=0.0))
        similar = _double(self.landmarks(self.landmarks.points_LD))
        slopes = np.zeros_like(similar)
        for column in maps.T:
            slope = similar * column  # row i: the gradient at landmark i, as a sum over landmarks
            np.fill_diagonal(slope, slope.diagonal() - slope.sum(axis=1))
            slopes += slope.T @ slope
        spread, directions = np.linalg.eigh(slopes)
        root = (directions * np.sqrt(spread.clip(min=0.0))).T
        metric = root @ _double(self.landmarks.seen(self.landmarks.points_LD))
        if len(self.landmarks.metric_RD):
            metric = metric @ _double(self.landmarks.metric_RD)
        _, steep, directions = np.linalg.svd(metric, full_matrices=False)
        if not steep.size or not steep[0] > 0.0:
            return self
        kept = steep > BLUNT * steep[0]
        metric = steep[kept, None] * directions[kept]
        known = torch.from_numpy(self.known).to(self.points.device)
        seen = _double(self.points[known]) @ metric.T
        size = np.sqrt(np.square(seen - seen.mean(axis=0)).sum(axis=1).mean())
        if not size > 0.0:
            return self
        return Similarities.of(
            self.points, self.known, torch.from_numpy(metric / size).to(self.points)
        )


def _double(values: Tensor) -> Array:
    found: Array = values.double().cpu().numpy()
    return found
