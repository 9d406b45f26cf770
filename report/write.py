"""One page of some names: which parts it has, and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pal.audit.record import AuditPlan
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.errors import PalError
from pal.files import digest
from pal.names import NAME
from pal.records import Entry
from pal.report.audit import add_audit
from pal.report.dataset import add_caches, add_dataset
from pal.report.evaluated import read_run, read_runs
from pal.report.page import Bullets, Code, Page, Text
from pal.report.render import write_page
from pal.report.run import add_run
from pal.report.runs import add_runs
from pal.report.subjects import Kind, Subject, all_of, subjects_of
from pal.report.sweep import add_sweep, best_run
from pal.report.tastes import disagreement_blocks
from pal.sweep.record import SweepSummary
from pal.train.run_record import RunRecord

WHAT: dict[Kind, str] = {
    "dataset": "who answered what, and what was made of it",
    "run": "what a head learned of people, how good it is, and for whom it is not",
    "sweep": "many heads, and the best of them",
    "audit": "whether people differ in what they like, and whether that would have been seen",
}


class Report(Entry):
    """What ``pal report --json`` prints."""

    file: str
    names: list[str]
    """of what is on the page"""


def write_report(config: Config, names: Sequence[str], out: Path | None = None) -> Report:
    """Write one page of a dataset, run, sweep or audit, or of several side by side.

    Without a name it is of the chosen dataset. Raises EvaluationError for names that nothing has,
    and whatever reading refuses.
    """
    given = list(names) or [f"dataset:{config.dataset}"]
    subjects = subjects_of(config.paths, given)
    page = page_of(config, subjects)
    path = out or config.paths.reports / f"{file_name(given)}.html"
    write_page(path, page)
    return Report(file=str(path), names=[one.name for one in subjects])


def file_name(names: Sequence[str]) -> str:
    """Return the file's name for the names that were asked for."""
    plain = [name.replace("dataset:", "").replace(":", "-") for name in names]
    joined = "-and-".join(plain)
    return joined if NAME.fullmatch(joined) else f"{plain[0][:60]}-and-more-{digest(plain, 4)}"


def page_of(config: Config, subjects: Sequence[Subject]) -> Page:
    """Return the page of some subjects: each with all there is, or side by side."""
    names = list(dict.fromkeys(one.name for one in subjects))
    lead = "; ".join(WHAT[kind] for kind in dict.fromkeys(one.kind for one in subjects))
    if len(subjects) > 1:
        lead = f"{len(subjects)} things side by side: {lead}"
    page = Page(", ".join(names), f"{lead[:1].upper()}{lead[1:]}.")
    runs = [one for one in subjects if one.kind == "run"]
    for one in subjects:
        if one.kind == "dataset":
            _add_all_of_dataset(page, config, one)
    if len(runs) > 1:
        add_runs(page, config.evaluate, *read_runs(runs))
    elif runs:
        add_run(page, config, read_run(runs[0].folder))
    for one in subjects:
        if one.kind == "sweep":
            _add_sweep(page, config, one)
        elif one.kind == "audit":
            add_audit(page, one)
    return page


def _add_all_of_dataset(page: Page, config: Config, subject: Subject) -> None:
    """Add a dataset, and what was made of it: caches, runs, sweeps and audits."""
    dataset = PreparedDataset.open(subject.folder)
    add_dataset(page, dataset)
    page.add("What people disagree about", disagreement_blocks(dataset))
    add_caches(page, config.paths.cache, dataset.name)
    runs, lost = _of_dataset(config, "run", RunRecord, dataset.name)
    sweeps, lost_sweeps = _of_dataset(config, "sweep", SweepSummary, dataset.name)
    audits, lost_audits = _of_dataset(config, "audit", AuditPlan, dataset.name)
    if runs:
        add_runs(page, config.evaluate, *read_runs(runs))
    else:
        page.add("Runs", [Text(f"None yet; run: pal train --dataset {dataset.name}")])
    for one in sweeps:
        _add_or_say(page, one, add_sweep)
    if not audits:
        page.add("Audits", [Text(f"None yet; run: pal audit --dataset {dataset.name}")])
    for one in audits:
        _add_or_say(page, one, add_audit)
    unknown = [*lost, *lost_sweeps, *lost_audits]
    if unknown:
        lead = Text("Whether these are of this dataset cannot be told.", "warning")
        page.add("Damaged or not finished", [lead, Bullets(unknown)])
    if runs:
        page.add("Pages of its runs", [Code([f"pal report {one.name}" for one in runs])])


def _of_dataset(
    config: Config, kind: Kind, record: type[RunRecord | SweepSummary | AuditPlan], dataset: str
) -> tuple[list[Subject], list[str]]:
    """Return what there is of a dataset, and a sentence for each whose dataset is not known, for
    its record is damaged."""
    found, problems = [], []
    for one in all_of(config.paths, kind):
        try:
            is_own = record.read(one.folder).dataset == dataset
        except PalError as problem:
            problems.append(f"{kind.capitalize()} {one.name} is not shown: {problem}.")
        else:
            found += [one] * is_own
    return found, problems


def _add_or_say(page: Page, subject: Subject, add: Callable[[Page, Subject], object]) -> None:
    """Add a part to a page of many, or why it cannot be shown."""
    try:
        add(page, subject)
    except PalError as problem:
        title = f"{subject.kind.capitalize()} {subject.name}"
        page.add(title, [Text(f"It cannot be shown: {problem}.", "warning")])


def _add_sweep(page: Page, config: Config, subject: Subject) -> None:
    summary = add_sweep(page, subject)
    if summary.best is None:
        return
    try:
        best = best_run(config.paths.runs, summary.best)
    except PalError as problem:
        page.add("Best head", [Text(f"It is not shown: {problem}.", "warning")], 3)
    else:
        add_run(page, config, best)
