"""A dataset on a page: who and how many, what was left out and why, its splits, its caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pal.cache.inspect import ListedCache, list_caches
from pal.cache.records import Manifest
from pal.dataset import PreparedDataset
from pal.outline import JUDGED, people_lines, rows_line, warnings_of
from pal.report.page import Block, Bullets, Facts, Page, Source, Table, Text

FEW_REASONS = 30
LONGEST = 240
"""characters of a text from a source"""


def add_dataset(page: Page, dataset: PreparedDataset) -> None:
    """Add what a dataset holds, and what it leaves out."""
    card = dataset.card
    page.add(f"Dataset {card.name}", list(_card(dataset)))
    page.add("Splits", _splits(dataset), 3)
    page.add("What was left out, and why", _left_out(dataset), 3)
    page.cite(
        Source("dataset", str(dataset.folder / card.file), card.split_digest[:16], _made(dataset)),
        Source("answers", str(dataset.folder / "pairs.parquet"), card.digests.pairs[:16],
               _made(dataset)),
        Source("items", str(dataset.folder / "items.parquet"), card.digests.items[:16],
               _made(dataset)),
    )  # fmt: skip


def add_caches(page: Page, root: Path, dataset: str) -> None:
    """Add the caches of a dataset, complete or not."""
    caches = [one for one in list_caches(root) if Path(one.dir).parent.name == dataset]
    if not caches:
        told = f"None yet; run: pal embed --dataset {dataset}"
        page.add("Caches of features", [Text(told)])
        return
    header = ["cache", "state", "items", "numbers each", "type", "MB", "failed", "s"]
    blocks: list[Block] = [
        Table.of("One cache for each encoder.", header, [_cache_row(one) for one in caches])
    ]
    if any(one.untrained for one in caches):
        blocks.append(Text(UNTRAINED, "warning"))
    page.add("Caches of features", blocks)
    page.cite(*(source for one in caches if (source := cache_source(Path(one.dir), dataset))))


UNTRAINED = (
    "An encoder here has random weights (untrained): numbers made with it say nothing about people."
)


def cache_source(folder: Path, dataset: str) -> Source | None:
    """Say where features come from; None where the cache is not complete."""
    manifest = Manifest.find(folder)
    if manifest is None:
        return None
    command = f"pal embed --dataset {dataset} --encoder {manifest.encoder}"
    file = str(folder / Manifest.file)
    return Source("features", file, manifest.fingerprint[:16], command)


def _cache_row(one: ListedCache) -> list[str]:
    name = Path(one.dir).name + (" (untrained)" if one.untrained else "")
    manifest = Manifest.find(Path(one.dir))
    if manifest is None:
        return [name, one.state, *[""] * 6]
    return [
        name, one.state, f"{one.rows:,}", f"{one.dim:,}", one.dtype, f"{one.bytes / 1e6:.1f}",
        f"{one.errors:,}", f"{manifest.seconds:.1f}",
    ]  # fmt: skip


def _card(dataset: PreparedDataset) -> Iterator[Block]:
    card, counts = dataset.card, dataset.card.counts
    per_user = counts.pairs_per_user
    kinds = ", ".join(f"{n:,} of {kind}" for kind, n in counts.items_by_modality.items())
    yield Text(rows_line(card.name, counts, card.splitting, card.rejects))
    for line in warnings_of(counts, card.splitting):
        yield Text(line[:1].upper() + line[1:] + ".", "warning")
    people, *further = people_lines(counts, card.splitting)
    yield Facts(
        [
            ("People", people.partition(":")[2].strip()),
            ("Answers of a person",
             f"{per_user.least:,} to {per_user.most:,}, median {per_user.median:g}"),
            ("Items", f"{counts.items:,} different ones: {kinds}"),
            ("Mentions of an item", f"{counts.encodings_saved_by_unique_items:.1f} on average"),
            ("Prompts", f"{counts.prompts:,}"),
            ("Ties", f"{counts.ties:,} ({counts.tie_rate:.1%})"),
            ("Asked again", f"{counts.repeated:,}, of which {counts.contradictory:,} were answered "
             "the other way"),
            ("Source", card.revision),
            ("Licence", card.licence),
        ]
    )  # fmt: skip
    if further:
        yield Bullets([line.strip() for line in further])


def _splits(dataset: PreparedDataset) -> list[Block]:
    counts, splitting = dataset.card.counts, dataset.card.splitting
    rows = [
        [
            cell.replace("_", ", ").replace("unseen", "new people").replace("seen", "seen people"),
            f"{counts.cells[cell]:,}",
            f"{counts.cell_users.get(cell, 0):,}",
            f"{counts.cell_groups.get(cell, 0):,}",
            JUDGED.get(cell, "training" if cell.startswith("train") else ""),
        ]
        for cell in counts.cells
    ]
    header = ["part", "answers", "people", "prompt groups", "serves as"]
    blocks: list[Block] = [Table.of("Who and what is in each part.", header, rows)]
    if splitting.why:
        blocks.append(Text(f"Divided by {splitting.divided}: {splitting.why}."))
    return blocks


def _left_out(dataset: PreparedDataset) -> list[Block]:
    blocks: list[Block] = []
    rejects = pl.DataFrame(pl.from_arrow(dataset.rejects()))
    if rejects.is_empty():
        blocks.append(Text("Every row of the source is used."))
    else:
        grouped = (
            rejects.group_by("reason", maintain_order=True)
            .agg(pl.len().alias("rows"), pl.first("source_row"), pl.first("message"))
            .sort("rows", descending=True)
            .head(FEW_REASONS)
        )
        rows = [
            [row["reason"], f"{row['rows']:,}", cut(row["source_row"]), cut(row["message"])]
            for row in grouped.iter_rows(named=True)
        ]
        header = ["reason", "rows", "the first of them", "what was wrong with it"]
        blocks.append(Table.of("Rows that became no comparison.", header, rows))
    lost = dataset.card.splitting.users_left_out
    if lost:
        rows = [[reason, f"{count:,}"] for reason, count in lost.items()]
        blocks.append(Table.of("People of whom nothing is left.", ["reason", "people"], rows))
    return blocks


def _made(dataset: PreparedDataset) -> str:
    card = dataset.card
    source = "" if card.source is None else f" --source {card.source}"
    return f"pal prepare --dataset {card.name}{source}"


def cut(text: str, longest: int = LONGEST) -> str:
    """Return a text on one line, and not too long."""
    plain = " ".join(text.split())
    return plain if len(plain) <= longest else f"{plain[:longest]}..."
