"""Train on persona statements, meet a new user in 20 answers, and rank eight statements for two
opposed users.

python examples/rewards_for_opposed_users.py path/to/persona [data.persona.users=20 ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pal import pipeline
from pal.config import load
from pal.reward import Answer, RewardModel
from pal.reward.export import Choice

QUESTION = 'Is the following statement something you would say?\n"{}"'
CANDIDATES = [
    "I enjoy going to art museums",
    "I love painting",
    "I have no interest in art",
    "I think drawing is a waste of time",
    "I enjoy reading classic novels",
    "I love discussing poetry",
    "I have no interest in literature",
    "I think reading novels is a waste of time",
]

if len(sys.argv) < 2:
    sys.exit("say where the statements are: python examples/rewards_for_opposed_users.py FOLDER")
source, *overrides = sys.argv[1:]
fixed = ["dataset=persona", f"data.persona.source={source}", "train.head=pal-a", "train.k=2"]
config = load(overrides=[*fixed, *overrides]).config
pipeline.embed(config)
pipeline.train(config, run="opposed")
model = RewardModel.from_pretrained(pipeline.export(config, "opposed", Choice(), "opposed").dir)

# A newcomer likes art; each answer says whether the newcomer would say a statement.
lines = (Path(source) / "interest-in-art.jsonl").read_text(encoding="utf-8").splitlines()[:20]
answers = []
for row in map(json.loads, lines):
    yes, no = row["answer_matching_behavior"], row["answer_not_matching_behavior"]
    answers.append(Answer(row["question"], yes, no))
model.users.add("newcomer", model.adapt(answers))
# the opposite answers make the opposite user
model.users.add(
    "opposite", model.adapt([Answer(a.prompt, a.first, a.second, 0.0) for a in answers])
)

prompts = [QUESTION.format(statement) for statement in CANDIDATES]
for user in ("newcomer", "opposite"):
    yes, no = (model.score(prompts, [answer] * len(prompts), user) for answer in (" Yes", " No"))
    ranked = sorted(
        zip((a - b for a, b in zip(yes, no, strict=True)), CANDIDATES, strict=True), reverse=True
    )
    print(f"{user}: reward of yes minus reward of no")
    for margin, statement in ranked:
        print(f"  {margin:+8.3f}  {statement}")
