"""Turn votes of a pol.is export into comparisons that ``--dataset pairs`` reads.

A vote is an answer to a question about the statement, so its two items are the words of the answer.
Passes are left out, and so are people with few votes. Every answer word is shared by all questions:
group by prompt alone.

python examples/polis_as_pairs.py path/to/export votes.jsonl [20]
pal doctor --dataset pairs --source votes.jsonl --set data.pairs.grouping=prompt
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

QUESTION = 'Do you agree with this statement?\n"{}"'
ANSWERS = {"1": (" Agree", " Disagree"), "-1": (" Disagree", " Agree")}

if len(sys.argv) < 3:
    sys.exit("say which export and what to write: python examples/polis_as_pairs.py EXPORT FILE")
export, target = Path(sys.argv[1]), Path(sys.argv[2])
fewest = int(sys.argv[3]) if len(sys.argv) > 3 else 20

with open(export / "comments.csv", newline="", encoding="utf-8-sig") as file:
    statements = {row["comment-id"]: row["comment-body"].strip() for row in csv.DictReader(file)}
with (
    open(export / "participants-votes.csv", newline="", encoding="utf-8-sig") as file,
    open(target, "w", encoding="utf-8") as out,
):
    for person in csv.DictReader(file):
        votes = {name: person[name] for name in statements if person.get(name) in ANSWERS}
        if len(votes) < fewest:
            continue
        for name, vote in votes.items():
            chosen, rejected = ANSWERS[vote]
            row = {"user_id": person["participant"], "prompt": QUESTION.format(statements[name])}
            out.write(json.dumps({**row, "chosen": chosen, "rejected": rejected}) + "\n")
