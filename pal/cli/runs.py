"""pal runs: which runs there are, and removing some."""

from __future__ import annotations

from typing import Annotated

import typer

from pal.cli import complete
from pal.cli.app import File, Json, Set, Yes, app, is_agreed, say, settings_of, show, size

runs_app = typer.Typer(help="Look after runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


@runs_app.command("ls")
def runs_ls(config: File = None, set_: Set = None, as_json: Json = False) -> None:
    """List the runs with what they reach."""
    from pal.evaluate.keeping import list_runs
    from pal.evaluate.report import as_markdown, interval

    runs = list_runs(settings_of(config, set_).config.paths.runs)

    def text() -> str:
        rows = [["run", "dataset", "encoder", "head", "K", "seen users", "state", "size"]]
        for run in runs:
            k = f"{run.k or '-'}" if run.head else "?"
            told = [run.dataset or "?", run.encoder or "?", run.head or "?", k]
            state = [interval(run.test_seen), run.state, size(run.bytes)]
            rows.append([run.run, *told, *state])
        return as_markdown(rows) if runs else "no runs"

    show({"runs": [run.model_dump(mode="json") for run in runs]}, as_json, text)


@runs_app.command("rm")
def runs_rm(
    names: Annotated[
        list[str], typer.Argument(help="Names of runs.", autocompletion=complete.runs)
    ],
    yes: Yes = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Remove runs; only folders whose own record says that they are runs."""
    from pal.evaluate.keeping import remove_runs, runs_to_remove

    found = runs_to_remove(settings_of(config, set_).config.paths.runs, names)
    for run in found:
        say(f"{run.dir}: {size(run.bytes)}")
    if not is_agreed(f"Remove {len(found)} run{'s' * (len(found) > 1)}?", yes):
        raise typer.Exit(1)
    removed = remove_runs(found)
    show(removed, as_json, lambda: f"{len(removed.removed)} removed, {size(removed.bytes)} freed")
