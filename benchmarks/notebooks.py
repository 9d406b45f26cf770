"""The notebooks of the site: executes docs/notebooks/*.py and writes what came out.

    python benchmarks/notebooks.py [NAME ...]      make notebooks

Each notebook is a Python file in the percent format, which is what people edit and what the tests
run; the .ipynb beside it is made here, in an empty folder, with the outputs that the site shows.
Needs jupytext, nbclient and ipykernel (the dependency group ``notebooks``).
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
PATIENCE = 600
"""seconds that a cell may take"""
KEPT = {"kernelspec", "language_info"}


def executed(source: Path) -> nbformat.NotebookNode:
    """Return a notebook with its outputs; raises CellExecutionError where a cell fails."""
    notebook = jupytext.read(source)
    # of tqdm, in the kernel: the bar of a browser is not there, and nobody sees one here
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=PATIENCE,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        began = time.perf_counter()
        client.execute()
        seconds = time.perf_counter() - began
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else random: every time another file
        cell.metadata = nbformat.NotebookNode()
        cell.source = cell.source.strip()
    kept = {key: value for key, value in notebook.metadata.items() if key in KEPT}
    date = datetime.now(UTC).date().isoformat()
    told = {"executed": date, "seconds": round(seconds)}
    notebook.metadata = nbformat.from_dict({**kept, "pal": told})
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    parser.add_argument("names", nargs="*", help=", ".join(names), metavar="NAME")
    for name in parser.parse_args().names or names:
        notebook = executed(NOTEBOOKS / f"{name}.py")
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb", version=4)
        print(f"{name}: {notebook.metadata.pal.seconds} s")


if __name__ == "__main__":
    main()
