"""From computed features to stored bytes: a cast that loses no value to infinity unseen."""

from __future__ import annotations

import numpy as np
import torch

from pal.cache.records import Statistics
from pal.embed.odd import Failure, Failures


def to_stored(features: torch.Tensor, dtype: str) -> np.ndarray:
    """Cast (n, dim) features to the store dtype and return their bytes, (n, dim * itemsize) uint8.

    What of them is no feature is told by ``unstorable``.
    """
    stored = features.to(getattr(torch, dtype))
    return stored.contiguous().cpu().view(torch.uint8).numpy()


def unstorable(features: torch.Tensor, stored: np.ndarray, dtype: str) -> Failures:
    """Return by row why stored features are none: NaN, infinity, or a value that the dtype lacks.

    Where the dtype is the wrong one, most rows fail, and stage one stops at its error rate.
    """
    failures: Failures = {}
    for row in np.flatnonzero(~finite_rows(stored, dtype)).tolist():
        values = features[row].float()
        if bool(torch.isfinite(values).all()):
            message = (
                f"a feature value of {float(values.abs().max()):.4g} is too large for {dtype}; "
                f"set embed.<encoder>.store_dtype to bfloat16 or float32"
            )
            failures[row] = Failure("nonfinite", f"TooLargeFor{dtype.capitalize()}", message)
        else:
            failures[row] = Failure("nonfinite", "NonFinite", "the feature holds NaN or infinity")
    return failures


def from_stored(stored: np.ndarray, dtype: str) -> torch.Tensor:
    """Return (n, dim) values in the store dtype from (n, dim * itemsize) bytes."""
    values = torch.from_numpy(np.ascontiguousarray(stored))
    if not len(stored):  # a view of no rows has no strides to change
        return torch.empty(
            0, stored.shape[1] // getattr(torch, dtype).itemsize, dtype=getattr(torch, dtype)
        )
    return values.view(getattr(torch, dtype))


def finite_rows(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Tell for each row of bytes whether all its values are finite, (n,) bool."""
    result: np.ndarray = torch.isfinite(from_stored(stored, dtype).float()).all(dim=1).numpy()
    return result


def moments(stored: np.ndarray, dtype: str) -> Statistics:
    """Return the sums over all stored values, (n, dim * itemsize) uint8."""
    values = from_stored(stored, dtype).double()
    return Statistics(
        count=values.numel(),
        sum=float(values.sum()),
        sum_of_squares=float(values.square().sum()),
        absmax=float(values.abs().max()) if values.numel() else 0.0,
    )
