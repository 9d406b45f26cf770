"""Random choices that depend on names alone: the same data in any order is split and drawn the same
way."""

from __future__ import annotations

import hashlib

import numpy as np


def bucket(kind: str, salt: str, key: str) -> float:
    """Place a key uniformly in [0, 1) (evaluation.md 1.2); ``kind`` and ``salt`` have at most 16
    bytes."""
    state = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"),
        digest_size=8,
        salt=salt.encode(),
        person=kind.encode(),
    )
    return float(int.from_bytes(state.digest(), "big") >> 11) / 2.0**53


def stream(kind: str, salt: str, key: str, size: int) -> np.ndarray:
    """Return ``size`` uniform 64-bit words that belong to a key.

    Philox words are fixed by its definition, so they stay the same under every release of NumPy,
    which is not promised of Generator's methods.
    """
    state = hashlib.blake2b(
        key.encode("utf-8"), digest_size=16, salt=salt.encode(), person=kind.encode()
    )
    return np.random.Philox(key=int.from_bytes(state.digest(), "big")).random_raw(size)


def uniforms(kind: str, salt: str, key: str, size: int) -> np.ndarray:
    """Return ``size`` float64 in [0, 1) that belong to a key."""
    return (stream(kind, salt, key, size) >> np.uint64(11)).astype(np.float64) / 2.0**53


def normals(kind: str, salt: str, key: str, size: int) -> np.ndarray:
    """Return ``size`` standard normal float64 that belong to a key (Box-Muller)."""
    half = (size + 1) // 2
    u = uniforms(kind, salt, key, 2 * half)
    radius = np.sqrt(-2.0 * np.log1p(-u[:half]))
    angle = 2.0 * np.pi * u[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def dirichlet(kind: str, salt: str, key: str, size: int) -> np.ndarray:
    """Return a point of the simplex that belongs to a key, Dirichlet(1, .., 1): normalised
    exponentials."""
    exponential = -np.log1p(-uniforms(kind, salt, key, size))
    weights: np.ndarray = exponential / exponential.sum()
    return weights


def words(kind: str, salt: str, key: str, ids: np.ndarray) -> np.ndarray:
    """Return a uniform 64-bit word for each 16-byte id, (n,) uint64, under a key: one draw of all
    ids at once.

    Both halves of the id go through SplitMix64's finaliser, whose start is the key.
    """
    halves = np.ascontiguousarray(ids, dtype="S16").view("<u8").reshape(-1, 2)
    word = np.full(len(halves), stream(kind, salt, key, 1)[0])
    for half in halves.T:
        word ^= half.astype(np.uint64)
        word += np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return word


def draw(kind: str, salt: str, key: str, population: int, size: int) -> np.ndarray:
    """Return ``size`` distinct indices below ``population`` in the random order that belongs to a
    key."""
    return np.argsort(stream(kind, salt, key, population), kind="stable")[:size]
