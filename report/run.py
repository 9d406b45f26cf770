"""One run on a page: what it is, how sure and how right it is, whom it harms, who its users are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from pal.config import Config
from pal.dataset import DatasetCard
from pal.errors import PalError
from pal.evaluate.compare import compare_runs
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.metrics import credit
from pal.evaluate.predict import in_test, load_run
from pal.evaluate.records import Cell
from pal.evaluate.report import interval
from pal.evaluate.sentences import OF_ONE_TASTE, difference_sentence
from pal.report.charts import lines, simplex, versus
from pal.report.dataset import UNTRAINED, cache_source, cut
from pal.report.page import Beside, Block, Code, Facts, Page, Picture, Source, Table, Text
from pal.report.runs import (
    ACCURACY,
    INTERVALS,
    Evaluated,
    by_shots,
    calibration,
    read_runs,
    sources_of,
)
from pal.report.subjects import all_of
from pal.report.tastes import prototype_blocks, prototype_weights
from pal.train.heads.users import NoUsers

MOST_HARMED, MOST_DRAWN = 15, 400
ALIKE = 0.05
"""weight below which nobody differs from the mean person"""


def add_run(page: Page, config: Config, run: Evaluated) -> None:
    """Add one run with all that can be said of it."""
    record = run.record
    page.add(f"Run {run.name}", _what(run))
    page.add("How good it is", _cells(run), 3)
    drawn = [one for one in (_shots(run), calibration(config.evaluate, [run])) if one is not None]
    if drawn:
        page.add("New people, and how sure it is", [Beside(drawn)], 3)
    baseline = baseline_of(config, run)
    page.add("Person by person", _people(config, run, baseline), 3)
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


def baseline_of(config: Config, run: Evaluated) -> Evaluated | None:
    """Return the run with one taste that a run is best compared with; None where there is none.

    Of the same answers and splits: the same head at K = 1, else a head whose people are all alike
    but for the reliability, else any with K = 1; the same encoder and seed before others.
    """
    here, _ = read_runs(all_of(config.paths, "run"))
    record = run.record
    same = (record.split_digest, record.pairs_digest)
    found = [
        one
        for one in here
        if (one.record.split_digest, one.record.pairs_digest) == same
        and one.name != run.name
        and one.has_one_taste
    ]

    def rank(one: Evaluated) -> tuple[int, ...]:
        other = one.record
        return (
            other.train.head != record.train.head,
            OF_ONE_TASTE.index(other.train.head) if other.train.head in OF_ONE_TASTE else 9,
            other.encoder != record.encoder,
            other.seed != record.seed,
        )

    return None if run.has_one_taste else min(found, key=rank, default=None)


def _what(run: Evaluated) -> list[Block]:
    record, metrics = run.record, run.metrics
    blocks: list[Block] = []
    if metrics.untrained:
        blocks.append(Text(UNTRAINED, "warning"))
    blocks.append(
        Facts(
            [
                ("Head", f"{metrics.head}, K = {metrics.k}"),
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
            name, f"{cell.n_users:,}", f"{cell.n_prompts:,}", f"{cell.n_pairs:,}", interval(cell),
            f"{cell.accuracy:.3f}", f"{cell.worst_decile:.3f}", f"{cell.nll:.3f}",
            f"{cell.ece:.3f}", "" if cell.harmed_vs_0 is None else f"{cell.harmed_vs_0:.0%}",
        ]
        for name, cell in cells
    ]  # fmt: skip
    header = [
        "who", "people", "prompts", "answers", ACCURACY, "over answers", "worst tenth", "NLL",
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


def _people(config: Config, run: Evaluated, baseline: Evaluated | None) -> list[Block]:
    """Compare each person's accuracy with that under one taste."""
    if run.has_one_taste:
        return []
    if baseline is None:
        command = f"{run.command} --k 1".replace(f"--k {run.record.train.k} ", "").replace(
            f"--run {run.name}", f"--run {run.name}-one-taste"
        )
        return [
            Text("There is no run with one taste on the same answers to compare with; train one:"),
            Code([command]),
        ]
    users, before, now, counts = _by_person(config, run, baseline)
    if not users:
        return [Text(f"{run.name} and {baseline.name} predict no answer of the same person.")]
    blocks: list[Block] = []
    found = [
        one
        for one in compare_runs(
            config.evaluate,
            (baseline.name, baseline.predictions()),
            [(run.name, run.predictions())],
        )
        if one.cell == "test_seen"
    ]
    blocks += [Text(difference_sentence(one)) for one in found]
    caption = (
        f"Each person's accuracy under {run.name}, and under {baseline.name}, which has one taste "
        "for all."
    )
    blocks.append(
        versus(caption, users, before, now, f"under {baseline.name}", f"under {run.name}")
    )
    loses = [n for n in np.argsort(now - before, kind="stable") if now[n] < before[n]]
    if loses:
        rows = [
            [users[n], f"{counts[n]:,}", f"{before[n]:.3f}", f"{now[n]:.3f}",
             f"{now[n] - before[n]:+.3f}"]
            for n in loses[:MOST_HARMED]
        ]  # fmt: skip
        header = ["person", "test answers", "one taste", "this run", "difference"]
        told = f"Who is worse off: {len(loses)} of {len(users)} people"
        more = f", the {MOST_HARMED} by most" if len(loses) > MOST_HARMED else ""
        blocks.append(Table.of(f"{told}{more}.", header, rows))
    return blocks


def _by_person(
    config: Config, run: Evaluated, baseline: Evaluated
) -> tuple[list[str], np.ndarray, np.ndarray, list[int]]:
    frames = [in_test(one.predictions(), "seen") for one in (baseline, run)]
    other = frames[1].select("pair_id", other="margin")
    both = frames[0].join(other, on="pair_id", how="inner")
    label = both["label"].to_numpy()
    earned = both.select("user_id").with_columns(
        before=pl.Series(credit(both["margin"].to_numpy(), label)),
        now=pl.Series(credit(both["other"].to_numpy(), label)),
    )
    by_user = earned.group_by("user_id").agg(
        pl.mean("before"), pl.mean("now"), pl.len().alias("count")
    )
    by_user = by_user.sort("user_id")
    return (
        by_user["user_id"].to_list(),
        by_user["before"].to_numpy(),
        by_user["now"].to_numpy(),
        by_user["count"].to_list(),
    )


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
        blocks: list[Block] = [_simplex(trained.users, weights)]
        spread = float(np.abs(weights - weights.mean(axis=0)).max())
        if spread < ALIKE:
            told = (
                f"All people are nearly the same mixture (no weight is {spread:.2f} off the mean)"
            )
            blocks.insert(0, Text(f"{told}: this head sees one taste here."))
        page.add("People among the prototypes", blocks, 3)
    try:
        dataset, store = inputs_of_run(config.paths, run.record)
        blocks = prototype_blocks(trained, dataset, store)
    except PalError as problem:
        blocks = [Text(f"What prototypes like cannot be shown: {problem}.", "warning")]
    page.add("What the prototypes like", blocks, 3)


def _simplex(users: Sequence[str], weights: np.ndarray) -> Picture:
    count = weights.shape[1]
    told = "A person stands nearer to the prototypes that weigh more in the own taste; "
    told += "point at one for the name." if count > 2 else "up and down means nothing."
    if len(users) > MOST_DRAWN:
        chosen = np.linspace(0, len(users) - 1, MOST_DRAWN).astype(int)
        told += f" {MOST_DRAWN} of {len(users):,} people, evenly from all."
        users, weights = [users[n] for n in chosen], weights[chosen]
    return simplex(told, [cut(user, 80) for user in users], weights)
