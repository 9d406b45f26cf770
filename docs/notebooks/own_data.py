# %% [markdown]
# # Your own data
#
# From a file that nobody has described to a head that is trained and judged. Here the file is
# written from the built-in data, with two rows that cannot be used, as every real file has some;
# you would begin at the next step.

# %%
import csv
from pathlib import Path

import polars as pl

from pal import pipeline
from pal.config import load

planted = {"dataset": "demo", "data.demo.groups": 2, "data.demo.users": 60}
demo = pipeline.prepare(load(None, (), planted).config)
texts = pl.DataFrame(pl.from_arrow(demo.items(["item_id", "text"])))
answers = (
    demo.pairs(population="seen")
    .join(texts.rename({"item_id": "prompt_id", "text": "statement"}), on="prompt_id")
    .join(texts.rename({"item_id": "first_id", "text": "first"}), on="first_id")
    .with_columns(is_yes=pl.col("first").str.ends_with("Yes") == (pl.col("label") > 0.5))
)
with open("hobbies.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["person", "statement", "vote"])
    for person, statement, is_yes in answers["user_id", "statement", "is_yes"].iter_rows():
        said = statement.partition('"')[2].rstrip('"')
        writer.writerow([person, said, "agree" if is_yes else "disagree"])
    writer.writerow(["seen-00001", "", "agree"])
    writer.writerow(["seen-00002", "I love chess", "perhaps"])
print("".join(Path("hobbies.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:4]))

# %% [markdown]
# ## What is in the file
#
# `pal init` looks at it and writes a commented `pipeline.yaml`.

# %%
from pal.data.proposal import propose
from pal.data.settings_file import write_settings

found = propose(Path("hobbies.csv"))
file = write_settings(found, Path("pipeline.yaml"))
print(file.read_text(encoding="utf-8"))

# %% [markdown]
# `pal doctor` reads all of it, writes nothing, and says what is wrong with which row.

# %%
from pal.doctor import Examination, dataset, text_of

config = load(file).config
findings = dataset(config)
problems = sum(finding.state == "problem" for finding in findings)
print(text_of(Examination(findings=findings, problems=problems)))

# %% [markdown]
# ## Train
#
# `auto` is one taste that all share, and deviations from it as far as the answers support them;
# `one-taste` has none. Both are solved at once, so there are no epochs and nothing to tune.

# %%
from pal.evaluate.report import as_markdown, table_of_runs

pipeline.embed(config, tell=lambda line: None)
runs = []
for head in ("one-taste", "auto"):
    config = load(file, (), {"train.head": head}).config
    runs.append(pipeline.train(config, head, tell=lambda line: None))
print(as_markdown(table_of_runs(runs)))

# %% [markdown]
# ## Judge
#
# What do people gain by having tastes of their own? And one page to look at, which asks no other
# place for anything.

# %%
from pal.evaluate.sentences import sentences_of

for sentence in sentences_of(pipeline.evaluate(config, ["one-taste", "auto"])):
    print(sentence)
page = pipeline.report(config, ["one-taste", "auto"])
print(f"The page: {page.file}")
