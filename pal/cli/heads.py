"""pal train, sweep, adapt and evaluate: stage two."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Literal

import typer

from pal.cli import complete
from pal.cli.app import (
    Dataset,
    Encoder,
    File,
    Json,
    RayAddress,
    Set,
    app,
    numbers_of,
    progress_bar,
    runs_table,
    say,
    settings_of,
    show,
    with_page,
)  # fmt: skip


@app.command()
def train(
    dataset: Dataset = None,
    encoder: Encoder = None,
    head: Annotated[
        str | None, typer.Option("--head", help="pal-a, pal-b, a baseline or a preset.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Number of prototypes; 1 is one reward for everybody.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of initial weights and batch order.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Name of the run; default: made of the settings.")
    ] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Stage two: train a head from cached features and evaluate it."""
    from pal import pipeline

    settings = settings_of(
        config, set_, dataset=dataset, encoder=encoder, train__head=head, train__k=k, seed=seed
    )
    with progress_bar(
        settings.config.train.epochs * settings.config.train.starts, "epochs"
    ) as progress:
        metrics = pipeline.train(settings.config, run, progress)
    show(metrics, as_json, lambda: with_page(runs_table([metrics]), metrics.run))


@app.command()
def sweep(
    dataset: Dataset = None,
    encoder: Encoder = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the sweep; default: dataset and encoder.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", help="Judge every head by so many folds of prompts."),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"] | None,
        typer.Option("--executor", help="local, or ray: stacks are tasks of a Ray cluster."),
    ] = None,
    ray_address: RayAddress = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Stacks at once; default: one for each GPU, or node of Ray."
        ),
    ] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Many heads from one cache in one process; a rerun trains only what is missing. Exits 1 if no
    head succeeds.

    On a cluster, whose nodes see this folder: pal sweep --executor ray --ray-address auto
    """
    from pal import pipeline
    from pal.sweep.plan import heads_of_sweep

    settings = settings_of(
        config, set_, dataset=dataset, encoder=encoder, sweep__folds=folds,
        sweep__executor=executor, sweep__ray_address=ray_address, sweep__workers=workers,
    )  # fmt: skip
    with (
        progress_bar(heads_of_sweep(settings.config.sweep), "heads") as progress,
        redirect_stdout(sys.stderr),
    ):  # Ray tells of its nodes on standard output
        summary = pipeline.sweep(settings.config, name, progress, say)

    def text() -> str:
        from pal.evaluate.report import as_markdown
        from pal.sweep.table import failures_text, nested_text, table_of_sweep

        folder = settings.config.paths.sweeps / summary.name
        told = (
            f"{as_markdown(table_of_sweep(folder))}\n\n{nested_text(summary)}"
            f"{summary.heads} heads, {summary.trained} trained now in {summary.seconds:.1f} s "
            f"({summary.mode}), {summary.failed} failed; {folder}{failures_text(summary)}"
        )
        return with_page(told, summary.name)

    show(summary, as_json, text)
    if summary.best is None:
        raise typer.Exit(1)


@app.command()
def adapt(
    run: Annotated[str, typer.Option("--run", help="Name of a run.", autocompletion=complete.runs)],
    shots: Annotated[
        str | None,
        typer.Option(
            "--shots", help="Answers per new user, e.g. 0,5,20; default: those that half can give."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="map or sgd.")] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="strict, or released: tuned on test.")
    ] = None,
    active: Annotated[
        bool | None, typer.Option("--active", help="Ask what tells most, not at random.")
    ] = None,
    grow: Annotated[
        int | None, typer.Option("--grow", min=1, help="Add prototypes for users outside the hull.")
    ] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Few-shot weights for new users, everything else frozen."""
    from pal import pipeline

    counts = None if shots is None else numbers_of("--shots", shots)
    settings = settings_of(
        config,
        set_,
        adapt__shots=counts,
        adapt__method=method,
        adapt__protocol=protocol,
        adapt__active=active,
    )
    found = pipeline.adapt(settings.config, run, grow)

    def text() -> str:
        from pal.evaluate.report import as_markdown, table_of_shots

        far, few = found.outside_hull, found.n_users_left_out
        most = max(map(int, found.test_unseen))
        left_out = f", {few} left out with fewer than {most} answers" if few else ""
        lines = [
            as_markdown(table_of_shots(found.test_unseen)),
            "",
            f"{found.n_users} users{left_out}, {found.method}; {len(far)} outside the "
            f"prototypes' hull",
        ]
        if far:
            named = ", ".join(f"{user.user_id} ({user.surprise:.2f} nats)" for user in far[:5])
            lines.append(f"  {named}")
        if grow is not None:
            made = found.grown
            told = "nothing to grow for" if made is None else f"run {made.run} has K = {made.k}"
            lines.append(told)
        return with_page("\n".join(lines), run)

    show(found, as_json, text)


@app.command()
def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of runs; the first is the baseline.", autocompletion=complete.runs
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="Name of a run; repeatable.", autocompletion=complete.runs),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", help="Test every prompt once, by heads trained without it."),
    ] = None,
    over: Annotated[
        Literal["prompts", "answers"],
        typer.Option("--over", help="What folds divide: prompts, or answers (known prompts)."),
    ] = "prompts",
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Metrics of trained runs, with error bars, and each run compared with the first."""
    from pal import pipeline
    from pal.errors import ConfigError

    names = [*(runs or []), *(run or [])]
    if not names:
        raise ConfigError("name at least one run: pal evaluate RUN [RUN ...]")
    if folds is None and over != "prompts":
        raise ConfigError(f"--over {over} says what folds divide; add --folds 5")
    settings = settings_of(config, set_)
    with progress_bar(len(names) * (folds or 0), "folds") as progress:
        result = pipeline.evaluate(settings.config, names, folds, progress, over=over)

    from pal.evaluate.report import write_report

    report = write_report(settings.config.paths.runs, result)
    show(result, as_json, lambda: with_page(report, *dict.fromkeys(names)))
