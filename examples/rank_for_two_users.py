"""Train on the built-in data, then ask for two users who disagree which statements they would say
yes to.

python examples/rank_for_two_users.py
"""

from __future__ import annotations

import sys

from pal import pipeline
from pal.config import load
from pal.data.sources.demo import QUESTION
from pal.reward import RewardModel

config = load(overrides=["train.head=pal-a", "train.k=3", *sys.argv[1:]]).config
pipeline.embed(config)
pipeline.train(config, run="rank-for-two-users")

model = RewardModel.from_run(config, "rank-for-two-users")
statements = [
    "I love pruning roses",
    "I love studying rook endgames",
    "Rolling fresh pasta makes my week",
]
prompts = [QUESTION.format(statement) for statement in statements]
for user in ("seen-00000", "seen-00001"):  # users belong to the groups in turn
    yes, no = (model.score(prompts, [answer] * 3, user) for answer in (" Yes", " No"))
    margins = [first - second for first, second in zip(yes, no, strict=True)]
    print(f"{user}: reward of yes minus reward of no")
    for margin, statement in sorted(zip(margins, statements, strict=True), reverse=True):
        print(f"  {margin:+8.3f}  {statement}")
