"""What a dataset cannot give a head: users for its prototypes, and pairs that it can read."""

from __future__ import annotations

from collections.abc import Sequence

from pal.cache.reader import FeatureStore
from pal.cache.spec import embed_command
from pal.config import TrainConfig
from pal.dataset import FEWEST, PreparedDataset
from pal.errors import ConfigError
from pal.train.build import has_prototypes, heads, reads_prompt
from pal.train.pairs import drop_without_feature

SHRUNK = ("auto",)
"""heads whose prior leaves prototypes that the users do not need at zero: any K is safe"""


def require_prototypes(
    dataset: PreparedDataset, names: Sequence[str], ks: Sequence[int], most: int | None
) -> list[str]:
    """Return a sentence where the seen users, of whom ``most`` are trained on, are too few for the
    largest of ``ks`` to be groups; raises ConfigError where they are fewer than the prototypes.

    Heads ``names`` without prototypes, or with shrunk ones, are asked nothing.
    """
    if not any(has_prototypes(name) for name in names if name in heads() and name not in SHRUNK):
        return []
    seen = dataset.card.counts.seen_users
    users, k = seen if most is None else min(seen, most), max(ks)
    if k > users:
        raise ConfigError(
            f"train.k = {k} is more than the {users:,} seen users of dataset {dataset.name}; use "
            f"{max(1, users // FEWEST)}, so that several users share a prototype"
        )
    if k == 1 or users >= FEWEST * k:
        return []
    return [
        f"  warning: K = {k} prototypes for {users:,} seen users: with fewer than {FEWEST} users "
        f"to each, it is a person's taste, not a group's; use K = {max(1, users // FEWEST)}"
    ]


def unread_lines(
    settings: TrainConfig,
    dataset: PreparedDataset,
    store: FeatureStore,
    with_prompts: bool = True,
) -> list[str]:
    """Return a sentence for pairs without a feature, and one for those without a prompt where the
    head of ``settings`` (settled) reads prompts; ``with_prompts`` False: training tells of
    those."""
    pairs = dataset.pairs(columns=["prompt_id", "first_id", "second_id"])
    found = []
    encoded = drop_without_feature(pairs, store)
    lost = len(pairs) - len(encoded)
    if lost:
        found.append(
            f"  {lost:,} of {len(pairs):,} pairs have an item that could not be encoded and are "
            f"left out; {embed_command(store.folder)} --retry-errors tries those items again"
        )
    missing = encoded["prompt_id"].null_count()
    if with_prompts and missing and reads_prompt(settings):
        found.append(
            f"  {missing:,} of {len(pairs):,} pairs have no prompt and are left out, as head "
            f"{settings.head} reads prompts; pal-a uses them"
        )
    return found
