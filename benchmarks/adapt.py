"""Ten thousand new users at once: MAP adaptation at 20 shots, K = 8, against one solver call per
user.

python benchmarks/adapt.py
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from pal.config import TrainConfig
from pal.evaluate.few_shot import NewUsers
from pal.evaluate.report import as_markdown
from pal.memory import kept
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import make_prior
from pal.train.build import build_head
from pal.train.pairs import Pairs
from pal.train.prepared import prepared

DIM, K, SHOTS, POOL = 384, 8, 20, 100
PROMPTS, ITEMS = 8192, 16_384


def drawing(users: int) -> float:
    """Return the seconds that one draw of shots takes."""
    count = users * POOL
    pool = Answers(
        (torch.zeros(count, 1),),
        torch.ones(count),
        torch.arange(users).repeat_interleave(POOL),
        users,
    )
    ids = np.frombuffer(np.random.default_rng(0).bytes(16 * count), "S16")
    names, no_groups = [f"{number}" for number in range(users)], np.zeros((2, 0))
    everyone = NewUsers(names, pool, pool, no_groups, ids, "v1")
    began = time.perf_counter()
    everyone.shots(SHOTS, 0)
    return time.perf_counter() - began


@kept()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument(
        "--alone", type=int, default=50, help="users adapted one by one, for the ratio"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapt.md"))
    arguments = parser.parse_args()
    rows = [
        [
            "head",
            "score",
            "preparing pairs, s",
            "adapting all, s",
            "one by one, s for all",
            "ratio",
            "same vectors",
        ]
    ]
    for name, score, learner in (
        ("pal-a", "squared", "f(Pw)"),
        ("pal-a", "squared", "f(P)w"),
        ("pal-b", "angle", None),
    ):
        torch.manual_seed(0)
        head = build_head(
            TrainConfig(head=name, score=score, learner=learner, k=K), DIM, 200
        ).eval()
        count = arguments.users * SHOTS
        user = torch.arange(count) % arguments.users
        features = torch.randn(PROMPTS + ITEMS, DIM)
        prompt = torch.randint(0, PROMPTS, (count,)) if head.uses_prompt else None
        first, second = torch.randint(PROMPTS, len(features), (2, count))
        pairs = Pairs(prompt, first, second, user, torch.ones(count))
        began = time.perf_counter()
        with torch.no_grad():
            ready = prepared(head, pairs, features.__getitem__)
        preparing = time.perf_counter() - began
        truth = head.users.of_logits(2.0 * torch.randn(arguments.users, K))
        with torch.no_grad():  # answers of users whom the head describes, up to chance
            margin = head.prepared_margin(ready, truth, user)
            label = (torch.rand(count) < torch.sigmoid(4.0 * margin / margin.std())).float()
        answers, prior = Answers(ready, label, user, arguments.users), make_prior(head, 0.3)
        began = time.perf_counter()
        together = adapt_map(head, answers, prior).vectors
        seconds = time.perf_counter() - began
        same = 0
        began = time.perf_counter()
        for number in range(arguments.alone):
            own = answers.take((answers.user == number).nonzero().squeeze(1))
            own.user, own.users = torch.zeros_like(own.user), 1
            vector = adapt_map(head, own, prior).vectors[0]
            same += torch.allclose(vector, together[number], rtol=0.0, atol=0.02)
        alone = (time.perf_counter() - began) * arguments.users / arguments.alone
        cells = [f"{preparing:.2f}", f"{seconds:.2f}", f"{alone:.0f}", f"{alone / seconds:.0f}"]
        cells.append(f"{same} of {arguments.alone}")
        rows.append([name if learner is None else f"{name}, {learner}", score, *cells])
    text = (
        f"# Adapting new users\n\n{date.today()}, `python benchmarks/adapt.py`: "
        f"{arguments.users:,} users, "
        f"{SHOTS} shots on {ITEMS:,} items and {PROMPTS:,} prompts, K = {K}, d = {DIM}, "
        f"{torch.get_num_threads()} threads, "
        f"{platform.machine()}; one by one: "
        f"{arguments.alone} users measured; "
        f"vectors are the same within 0.02.\n\n{as_markdown(rows)}\n"
    )
    text += (
        f"\nDrawing {SHOTS} of {POOL} answers for all {arguments.users:,} users: "
        f"{drawing(arguments.users):.2f} s.\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
