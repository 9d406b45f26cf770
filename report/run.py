"""One run on a page: what it is, how sure and how right it is, whom it harms, who its users are."""

from __future__ import annotations

from pal.config import Config
from pal.dataset import DatasetCard
from pal.errors import PalError
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import load_run
from pal.evaluate.records import Cell
from pal.evaluate.report import interval
from pal.report.charts import lines
from pal.report.dataset import UNTRAINED, cache_source
from pal.report.evaluated import Evaluated, sources_of
from pal.report.page import Beside, Block, Code, Facts, Page, Picture, Source, Table, Text
from pal.report.people import baseline_of, person_blocks, simplex_blocks
from pal.report.runs import ACCURACY, INTERVALS, by_shots, calibration
from pal.report.tastes import prototype_blocks, prototype_weights
from pal.train.build import with_k
from pal.train.heads.users import NoUsers


def add_run(page: Page, config: Config, run: Evaluated) -> None:
    """Add one run with all that can be said of it."""
    record = run.record
    page.add(f"Run {run.name}", _what(run))
    page.add("How good it is", _cells(run), 3)
    shots = _shots(run)
    calibrated = calibration(config.evaluate, {run.name: run.predictions()})
    drawn = [one for one in (shots, calibrated) if one is not None]
    if drawn:
        title = "How sure it is" if shots is None else "New people, and how sure it is"
        page.add(title, [Beside(drawn)], 3)
    baseline = baseline_of(config, run)
    page.add("Person by person", person_blocks(config, run, baseline), 3)
    _add_tastes(page, config, run)
    page.add(
        "Made by", [Code([run.command]), Text(f"All settings: {run.folder / 'config.yaml'}")], 3
    )
    page.cite(*sources_of(run))
    if baseline is not None:
        page.cite(*sources_of(baseline))
    folder = config.paths.cache / record.dataset
    cache = folder / f"{record.encoder}-{record.cache_fingerprint[:12]}"
    source = cache_source(cache, record.dataset)
    if source is not None:
        page.cite(source)
    card = DatasetCard.find(config.paths.data / record.dataset)
    if card is not None:
        file = str(config.paths.data / record.dataset / DatasetCard.file)
        command = f"pal prepare --dataset {record.dataset}"
        page.cite(Source("dataset", file, card.split_digest[:16], command))


def _what(run: Evaluated) -> list[Block]:
    record, metrics = run.record, run.metrics
    blocks: list[Block] = []
    if metrics.untrained:
        blocks.append(Text(UNTRAINED, "warning"))
    blocks.append(
        Facts(
            [
                ("Head", with_k(metrics.head, metrics.k)),
                ("Dataset", f"{record.dataset}, items as {record.view}"),
                ("Encoder", record.encoder + (" (untrained)" if metrics.untrained else "")),
                ("People", f"{len(record.users):,} seen"),
                ("Parameters", f"{metrics.params:,}, of which {metrics.params_per_user:,} for each "
                 "person"),
                ("Training", f"{metrics.seconds:.1f} s, seed {record.seed}"),
                ("Grown from", record.grown_from or "nothing: it was trained"),
            ]
        )
    )  # fmt: skip
    return blocks


def _cells(run: Evaluated) -> list[Block]:
    metrics = run.metrics
    cells: list[tuple[str, Cell]] = []
    if metrics.test_seen:
        cells.append(("seen people, new answers", metrics.test_seen))
    if metrics.test_items_seen:
        cells.append(("seen people, answers about known items", metrics.test_items_seen))
    for shots in sorted(metrics.test_unseen, key=int):
        cells.append((f"new people, {shots} answers", metrics.test_unseen[shots]))
    rows = [
        [
            name, interval(cell), f"{cell.n_users:,}", f"{cell.n_prompts:,}", f"{cell.n_pairs:,}",
            f"{cell.accuracy:.3f}", f"{cell.worst_decile:.3f}", f"{cell.nll:.3f}",
            f"{cell.ece:.3f}", "" if cell.harmed_vs_0 is None else f"{cell.harmed_vs_0:.0%}",
        ]
        for name, cell in cells
    ]  # fmt: skip
    header = [
        "who", ACCURACY, "people", "prompts", "answers", "over answers", "worst tenth", "NLL",
        "ECE", "worse than at 0 answers",
    ]  # fmt: skip
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    table = Table.of("On test answers, which no choice was made by.", header, rows)
    return [table, Text(f"{INTERVALS} NLL: nats, a coin has 0.693. ECE: calibration error.")]


def _shots(run: Evaluated) -> Picture | None:
    curve = by_shots(run.metrics)
    if len(curve) < 2:
        return None
    told = "New people by the number of their answers; 0: the mean over the seen people."
    return lines(told, {run.name: curve}, "answers", ACCURACY, is_log=True)


def _add_tastes(page: Page, config: Config, run: Evaluated) -> None:
    """Add the users among the prototypes, and what each prototype likes."""
    trained = load_run(config.paths.runs, run.name)
    weights = prototype_weights(trained)
    if weights is None:
        told = "This head has no prototypes that users are mixtures of."
        if isinstance(trained.head.users, NoUsers):
            told = "This head has one taste for all people."
        page.add("People among the prototypes", [Text(told)], 3)
        return
    if weights.shape[1] > 1:
        blocks = simplex_blocks(trained.users, weights)
        page.add("People among the prototypes", blocks, 3)
    try:
        dataset, store = inputs_of_run(config.paths, run.record)
        blocks = prototype_blocks(trained, dataset, store)
    except PalError as problem:
        blocks = [Text(f"What prototypes like cannot be shown: {problem}.", "warning")]
    page.add("What the prototypes like", blocks, 3)
