"""What the receipts of all shards add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pal.cache.records import (
    FeatureStatistics,
    Manifest,
    Provenance,
    Receipt,
    Seconds,
    Statistics,
)
from pal.cache.spec import Spec, fingerprint, store_dtype


def manifest_of(
    spec: Spec, receipts: Sequence[Receipt], provenance: Provenance, files: Mapping[str, str]
) -> Manifest:
    """Return the manifest of a cache from the receipts of all its shards, in order.

    ``files`` are the seals of further files that lie beside the manifest.
    """
    return Manifest(
        fingerprint=fingerprint(spec),
        spec=spec,
        dim=receipts[0].dim,
        dtype=store_dtype(spec),
        rows=sum(receipt.rows for receipt in receipts),
        errors=sum(receipt.errors for receipt in receipts),
        bytes=sum(receipt.bytes for receipt in receipts),
        shards=[receipt.entry for receipt in receipts],
        feature=_distribution([receipt.statistics for receipt in receipts]),
        **dict(provenance),
        tokens_real=sum(receipt.tokens_real for receipt in receipts),
        tokens_padded=sum(receipt.tokens_padded for receipt in receipts),
        spent=total_seconds(receipts),
        files=dict(files),
    )


def total_seconds(receipts: Sequence[Receipt]) -> Seconds:
    """Return where the time of some shards went."""
    return Seconds(
        read=round(sum(receipt.seconds.read for receipt in receipts), 4),
        wait=round(sum(receipt.seconds.wait for receipt in receipts), 4),
        encode=round(sum(receipt.seconds.encode for receipt in receipts), 4),
        write=round(sum(receipt.seconds.write for receipt in receipts), 4),
    )


def _distribution(statistics: Sequence[Statistics]) -> FeatureStatistics:
    count = max(sum(s.count for s in statistics), 1)
    mean = sum(s.sum for s in statistics) / count
    square = sum(s.sum_of_squares for s in statistics) / count
    std = max(square - mean * mean, 0.0) ** 0.5
    return FeatureStatistics(mean=mean, std=std, absmax=max(s.absmax for s in statistics))
