"""What stage one says on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pal.cache.inspect import CacheStats
    from pal.embed.forecast import Forecast
    from pal.embed.run import EmbedResult
    from pal.embed.selftest import SelfTest


def of_embed(result: EmbedResult) -> str:
    """Return the closing line of ``pal embed``."""
    if not result.encoded:
        return f"{result.dir}: all {result.reused:,} features are there"
    cut = f", {result.truncated:,} cut" if result.truncated else ""
    cut += f" ({result.answers_cut:,} of them in the answer itself)" if result.answers_cut else ""
    return (
        f"{result.dir}: {result.encoded:,} of {result.items_unique:,} unique items encoded "
        f"({result.items_total:,} mentions) at {result.rows_per_s:,.0f} items/s, "
        f"{_padding(result.tokens_real, result.tokens_padded)}{cut}, {result.errors} errors"
    )


def of_forecast(planned: Forecast) -> str:
    """Return what ``--dry-run`` prints."""
    saved = planned.items_total / max(1, planned.items_unique)
    size = "unknown until the model is loaded"
    if planned.bytes is not None:
        size = f"{planned.bytes / 1e6:,.1f} MB"
    time = "unknown: this encoder has not run here"
    if planned.seconds is not None:
        time = f"{planned.seconds:,.0f} s"
    return "\n".join(
        [
            f"cache    {', '.join(planned.dirs)}",
            f"items    {planned.items_total:,} mentions, {planned.items_unique:,} unique "
            f"({saved:.1f} times fewer), {planned.items_done:,} done, {planned.images:,} images",
            f"tokens   about {planned.tokens_estimated:,} of text (4 characters each)",
            f"size     {size} in {planned.shards:,} shards",
            f"time     {time}",
            *([f"dtype    {planned.arithmetic}"] if planned.arithmetic else []),
        ]
    )


def of_self_test(tested: SelfTest) -> str:
    """Return what ``--self-test`` prints."""
    logits = ""
    if tested.largest_logit_difference is not None:
        logits = (
            f"; feature x score weight is the model's logit within "
            f"{tested.largest_logit_difference:.2g}"
        )
    return (
        f"{tested.dir}: {tested.items} items encoded alone differ from the cache by at most "
        f"{tested.largest_difference:.2g} of their largest value{logits}"
    )


def of_stats(found: CacheStats) -> str:
    """Return what ``pal cache stats`` prints."""
    marked = " (untrained encoder)" if found.untrained else ""
    spent = ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in found.seconds)
    return "\n".join(
        [
            f"cache    {found.dir}{marked}",
            f"rows     {found.rows:,} x {found.dim} {found.dtype} in {found.shards:,} shards, "
            f"{found.bytes / 1e6:,.1f} MB, {found.errors:,} errors",
            f"values   mean {found.feature.mean:.4g}, standard deviation {found.feature.std:.4g}, "
            f"largest {found.feature.absmax:.4g}",
            f"tokens   {found.tokens_real:,}, {_padding(found.tokens_real, found.tokens_padded)}",
            f"seconds  {spent}",
        ]
    )


def _padding(real: int, padded: int) -> str:
    return f"{100.0 * (1.0 - real / padded) if padded else 0.0:.1f} % padding"
