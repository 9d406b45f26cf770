"""An example of each command, shown at the end of its help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "adapt": ("pal adapt --run demo-minilm-pal-a-k3-s0 --shots 0,5,20",),
    "audit": ("pal audit --dataset town", "pal audit --dataset town --no-features"),
    "cache export": ("pal cache export cache/town/minilm --output town --format npy",),
    "cache ls": ("pal cache ls",),
    "cache rm": ("pal cache rm town minilm", "pal cache rm --unused"),
    "cache stats": ("pal cache stats cache/town/minilm",),
    "cache verify": ("pal cache verify cache/town/minilm",),
    "config": ("pal config --set train.k=4",),
    "demo": ("pal demo",),
    "doctor": ("pal doctor --dataset votes --source town.csv",),
    "embed": (
        "pal embed --dataset town --encoder minilm",
        "pal embed --dataset town --dry-run",
    ),
    "evaluate": (
        "pal evaluate demo-minilm-pal-a-k1-s0 demo-minilm-pal-a-k3-s0",
        "pal evaluate demo-minilm-pal-a-k1-s0 demo-minilm-pal-a-k3-s0 --folds 5",
    ),
    "export": ("pal export --run demo-minilm-pal-a-k3-s0 --user seen-00001",),
    "init": ("pal init --source town.csv",),
    "prepare": ("pal prepare --dataset pairs --source answers.jsonl",),
    "report": (
        "pal report demo",
        "pal report demo-minilm-pal-a-k1-s0 demo-minilm-pal-a-k3-s0",
    ),
    "rewardbench": ("pal rewardbench --model exports/NAME --input reward-bench.parquet",),
    "runs ls": ("pal runs ls",),
    "runs rm": ("pal runs rm demo-minilm-pal-a-k1-s0",),
    "score": (
        "pal score --model exports/NAME --input in.csv --output out.csv",
        "pal score --model exports/NAME --input in.csv --output out.csv --answers new-people.csv",
    ),
    "serve": ("pal serve --model exports/NAME --port 8000",),
    "sweep": ("pal sweep --dataset town --set 'sweep.k=[1,2,4,8]' --set 'sweep.seed=[0,1,2]'",),
    "train": (
        "pal train --dataset town --head auto",
        "pal train --dataset town --head pal-a --k 4 --set train.lr=1e-3",
    ),
}
"""by what is typed behind pal"""


def epilog(command: str) -> str:
    """Return the end of a command's help; a paragraph a line, or they would flow into one."""
    return "\n\n".join(["Example:", *(f"  {line}" for line in EXAMPLES.get(command, ()))])
