"""An epoch of a million pairs at d = 1024 against its own matrix products, on the same device.

    python benchmarks/gpu_heads.py OUT.json [--device cuda] [--small]

PAL-A and PAL-B, K = 2, in each ``train.precision`` and with two sizes of batches; the steps and the
products are those of train_epoch.py.
"""

from __future__ import annotations

from gpu_sizes import Found, options_of
from train_epoch import DIM, PRECISIONS, Sizes, measure

PAIRS, ITEMS, BATCHES = 1_000_000, 200_000, (1024, 16_384)


def main() -> None:
    options = options_of(__doc__)
    found = Found(options.out)
    pairs, items, dim = (4096, 2000, 64) if options.small else (PAIRS, ITEMS, DIM)
    found.table(
        f"{pairs:,} pairs over {items:,} items, d = {dim}, K = 2.", "head", "batch", "precision",
        "epoch, s", "million pairs/s", "to float32 products", "to bfloat16 products",
    )  # fmt: skip
    for batch in BATCHES:
        for name in ("pal-a", "pal-b"):
            sizes = Sizes(pairs, batch, items, dim, options.device)
            seconds = measure(name, sizes, 1)
            for precision in PRECISIONS:
                own = seconds[f"epoch {precision}"]
                ratios = [f"{own / seconds[f'products {one}']:.2f}" for one in PRECISIONS]
                found.row(name, f"{batch:,}", precision, f"{own:.2f}", f"{pairs / own / 1e6:.2f}",
                          *ratios)  # fmt: skip


if __name__ == "__main__":
    main()
