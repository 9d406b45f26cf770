"""Batches of similar length under a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def token_budget_batches(n_tokens: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield row numbers, longest items first, so that rows x longest stays within the budget.

    An item longer than the budget runs alone. Longest first: a lack of memory shows at once.
    """
    order = np.argsort(-n_tokens, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(n_tokens[order[start]]))
        stop = start + max(1, budget // longest)
        yield order[start:stop]
        start = stop


def equal_length_batches(n_tokens: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """As ``token_budget_batches``, but without any padding, for models that it would disturb."""
    for length in np.unique(n_tokens)[::-1]:
        rows = np.flatnonzero(n_tokens == length)
        for part in token_budget_batches(n_tokens[rows], budget):
            yield rows[part]


def joined_batches(n_tokens: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """As ``token_budget_batches``, for items end to end: their own tokens fit the budget."""
    order = np.argsort(-n_tokens, kind="stable")
    ends = np.cumsum(n_tokens[order], dtype=np.int64)
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[start:stop]
        start = stop
