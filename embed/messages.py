"""What stage one says on the terminal."""

from __future__ import annotations

from typing import Any


def of_embed(result: dict[str, Any]) -> str:
    """Return the closing line of ``pal embed``."""
    if not result["encoded"]:
        return f"{result['dir']}: all {result['reused']:,} features are there"
    padding = 100.0 * (1.0 - result["tokens_real"] / max(1, result["tokens_padded"]))
    cut = f", {result['truncated']:,} cut" if result["truncated"] else ""
    cut += (
        f" ({result['answers_cut']:,} of them in the answer itself)"
        if result["answers_cut"]
        else ""
    )
    return (
        f"{result['dir']}: {result['encoded']:,} of {result['items_unique']:,} unique items "
        "encoded "
        f"({result['items_total']:,} mentions) at {result['rows_per_s']:,.0f} items/s, "
        f"{padding:.1f} % padding{cut}, "
        f"{result['errors']} errors"
    )


def of_forecast(planned: dict[str, Any]) -> str:
    """Return what ``--dry-run`` prints."""
    saved = planned["items_total"] / max(1, planned["items_unique"])
    size = (
        "unknown until the model is loaded"
        if planned["bytes"] is None
        else f"{planned['bytes'] / 1e6:,.1f} MB"
    )
    time = (
        "unknown: this encoder has not run here"
        if planned["seconds"] is None
        else f"{planned['seconds']:,.0f} s"
    )
    return "\n".join(
        [
            f"cache    {', '.join(planned['dirs'])}",
            f"items    {planned['items_total']:,} mentions, {planned['items_unique']:,} unique "
            f"({saved:.1f} times fewer), {planned['items_done']:,} done, {planned['images']:,} "
            "images",
            f"tokens   about {planned['tokens_estimated']:,} of text (4 characters each)",
            f"size     {size} in {planned['shards']:,} shards",
            f"time     {time}",
        ]
    )


def of_self_test(tested: dict[str, Any]) -> str:
    """Return what ``--self-test`` prints."""
    logits = ""
    if "largest_logit_difference" in tested:
        logits = f"; feature x score weight is the model's logit within {tested['largest_logit_difference']:.2g}"
    return (
        f"{tested['dir']}: {tested['items']} items encoded alone differ from the cache by at most "
        f"{tested['largest_difference']:.2g} of their largest value{logits}"
    )


def of_stats(found: dict[str, Any]) -> str:
    """Return what ``pal cache stats`` prints."""
    padding = (
        100.0 * (1.0 - found["tokens_real"] / found["tokens_padded"])
        if found["tokens_padded"]
        else 0.0
    )
    values = found["feature"]
    marked = " (untrained encoder)" if found["untrained"] else ""
    return "\n".join(
        [
            f"cache    {found['dir']}{marked}",
            f"rows     {found['rows']:,} x {found['dim']} {found['dtype']} in {found['shards']:,} "
            "shards, "
            f"{found['bytes'] / 1e6:,.1f} MB, {found['errors']:,} errors",
            f"values   mean {values['mean']:.4g}, standard deviation {values['std']:.4g}, "
            f"largest {values['absmax']:.4g}",
            f"tokens   {found['tokens_real']:,}, {padding:.1f} % padding",
            f"seconds  {', '.join(f'{stage} {seconds:,.1f}' for stage, seconds in found['seconds'].items())}",
        ]
    )
