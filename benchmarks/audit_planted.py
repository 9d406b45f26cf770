"""Sets whose plurality is known, to be audited: docs/results/audit.md.

    python benchmarks/audit_planted.py FOLDER

Writes two kinds of answers into FOLDER, and prints the commands that audit them:

- summaries of different lengths, as in TL;DR: everybody prefers the longer one, or one half of the
  people the shorter one; one answer in ten is wrong;
- drawn images in the schema of Pick-a-Pic, of which everybody prefers the brighter by a little:
  Pick-a-Filter adds a colour that halves of the people like to no pair (beta 0) or to all (beta 1).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PEOPLE, EACH = 30, 60
TEXT = """my sister wants to move out but our parents think that she is too young and has no money
for it so she asked me to lend her some and I do not know what to say because we always fight about
it when the landlord came by he told us that the contract ends in spring which nobody expected"""


def write_lengths(path: Path, opposed: float) -> None:
    """Write pairs of summaries; a share of the people prefers the shorter one."""
    rng, words = np.random.default_rng(0), TEXT.split()
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(PEOPLE * EACH):
            person = number % PEOPLE
            short, long = (
                " ".join(rng.choice(words, size)) + "."
                for size in (rng.integers(4, 12), rng.integers(20, 45))
            )
            prefers_long = (person >= opposed * PEOPLE) ^ (rng.random() < 0.1)
            chosen, rejected = (long, short) if prefers_long else (short, long)
            row = {
                "user_id": f"p{person}", "prompt": f"Summarise post {number}.", "chosen": chosen,
                "rejected": rejected,
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")


def write_images(folder: Path) -> None:
    """Write drawn images; people prefer the warmer one in six of ten pairs, all the same."""
    place = Path(__file__).with_name("pickapic_source.py")
    spec = importlib.util.spec_from_file_location("pickapic_source", place)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    rng = np.random.default_rng(0)

    def answer(user: int, first: float, second: float) -> float:
        return float((first > second) ^ bool(rng.random() < 0.4))

    source.write_source(
        folder, {"train": 1500, "validation": 150, "test": 150}, PEOPLE, answer=answer
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, opposed in (("length-one", 0.0), ("length-two", 0.5)):
        write_lengths(folder / f"{name}.jsonl", opposed)
        data = f'--set \'data.{name}={{"kind": "pairs", "source": "{folder / name}.jsonl"}}\''
        for command in ("embed", "audit --power"):
            print(f"pal {command} --dataset {name} {data}")
    write_images(folder / "pickapic")
    for beta in (0, 1):
        settings = f"--set data.pickafilter.beta={beta} --encoder tiny-clip"
        source = f"--set data.pickafilter.source={folder / 'pickapic'}"
        print(f"pal embed --dataset pickafilter {source} {settings}")
        print(f"pal audit --dataset pickafilter {settings} --power --name pickafilter-{beta}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
