# %% [markdown]
# # Both stages in Python
#
# The built-in data: 100 people in three groups answer statements such as *I never tire of pruning
# roses* with yes or no. Each group likes one of three interests, and 5 % of the answers are wrong,
# so 0.95 is the most that anything can reach. The encoder is the real MiniLM.
#
# The functions are those that the command line calls; each takes the resolved settings.

# %%
from pal import pipeline
from pal.config import load

settings = {"dataset": "demo", "encoder": "minilm", "train.head": "pal-a"}
config = load(None, (), settings).config

# %% [markdown]
# ## Stage one: encode once
#
# Every unique text goes through the encoder once. What comes out is ordinary Parquet; a second
# call finds it and encodes nothing.

# %%
cache = pipeline.embed(config)
again = pipeline.embed(config)
print(
    f"{cache.encoded} texts encoded; the second time {again.encoded}, as {again.reused} were there"
)

# %% [markdown]
# ## Stage two: train heads from the cache
#
# With one prototype everybody has the same taste; with three each person is a mixture of three.
# Accuracies are on statements that no head was trained on, with 95 % intervals; a `p` behind one
# says that most of its width comes from the statements, not from the people.

# %%
from pal.evaluate.report import as_markdown, table_of_runs

runs = []
for name, k in (("one", 1), ("three", 3)):
    config = load(None, (), {**settings, "train.k": k}).config
    runs.append(pipeline.train(config, name))
print(as_markdown(table_of_runs(runs)))

# %% [markdown]
# Is the difference sure? Intervals and paired differences are over people *and* statements.

# %%
from pal.evaluate.sentences import sentences_of

for sentence in sentences_of(pipeline.evaluate(config, ["one", "three"])):
    print(sentence)

# %% [markdown]
# ## People whom the head never saw
#
# The head stays as it is; a new person is three numbers, found from a few answers. Without any
# answer the head can only say what the average person would.

# %%
import matplotlib.pyplot as plt

config = load(None, (), {**settings, "train.k": 3, "adapt.shots": [0, 1, 2, 5, 10, 20]}).config
adapted = pipeline.adapt(config, "three")
shots = [int(count) for count in adapted.test_unseen]
cells = list(adapted.test_unseen.values())
low, high = zip(*(cell.macro_ci95 for cell in cells), strict=True)

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(shots, [cell.macro_accuracy for cell in cells], marker="o")
axes.fill_between(shots, low, high, alpha=0.2)
axes.set_xticks(shots)
axes.set_xlabel("answers of a new person")
axes.set_ylabel("accuracy, mean over people")
axes.set_title(f"{adapted.n_users} new people, 95 % intervals")
plt.show()
for count, cell in zip(shots, cells, strict=True):
    low, high = cell.macro_ci95
    print(f"{count:2} answers: accuracy {cell.macro_accuracy:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# ## A reward for each person
#
# The run is a reward model: it scores texts for the person that you name. The first of these people
# likes gardening, the second chess, the third cooking. No statement of the data is worded like the
# three here: what each person likes comes first, but the probabilities are less sure than on
# statements of the data's kind.

# %%
from pal.data.sources.demo import QUESTION
from pal.reward import RewardModel

model = RewardModel.from_run(config, "three")
statements = [
    "My roses get more of my time than my job",
    "A quiet game of chess is my perfect evening",
    "My kitchen smells of fresh bread every Sunday",
]
prompts = [QUESTION.format(statement) for statement in statements]
for user in ("seen-00000", "seen-00001", "seen-00002"):
    print(f"{user} says yes with probability")
    probabilities = model.compare(prompts, [" Yes"] * 3, [" No"] * 3, [user] * 3)
    for probability, statement in zip(probabilities, statements, strict=True):
        print(f"  {probability:.2f} to {statement!r}")
