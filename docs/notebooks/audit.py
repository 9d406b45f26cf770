# %% [markdown]
# # Is there plurality?
#
# Disagreement proves nothing: people who answer at random disagree, too. The audit compares many
# tastes with one, in which each person has a reliability and a readiness to agree, and says how
# likely chance alone is to give what was found.
#
# Two sets of 60 people who answer the same 600 statements about gardening and chess, a fifth of the
# answers at random the wrong way round. In the one half of the people like gardening and half like
# chess, in the other everybody likes both.

# %%
from pal import pipeline
from pal.config import load

people = {"kind": "demo", "groups": 2, "users": 40, "unseen_users": 10, "validation_users": 10}
answers = {
    "pairs_per_user": 60,
    "validation_pairs_per_user": 10,
    "test_pairs_per_user": 10,
    "noise": 0.2,
}
sets = {
    "data.two-tastes": {**people, **answers, "interests_per_user": 1},
    "data.one-taste": {**people, **answers, "interests_per_user": 2},
}


def settings(dataset, **options):
    return load(None, (), {**sets, "dataset": dataset, **options}).config


# %% [markdown]
# ## The answers alone
#
# Without features the audit looks only at statements that several people judged: seconds, and no
# encoder. With `power` it plants minorities of its own, to say which it would have found; without
# that, nothing seen is no verdict.

# %%
for dataset in ("two-tastes", "one-taste"):
    found = pipeline.audit(settings(dataset, **{"audit.features": False, "audit.power": True}))
    print(f"{dataset}: {found.verdict}\n  {found.sentence}")

# %% [markdown]
# ## With features
#
# The second test asks whether many tastes predict answers that were held out better than one. It
# also says how much, with a 95 % interval over people: plurality can be certain and small.
# Here no power is asked for, which would take twice the time, so that of one taste it cannot tell.

# %%
for dataset in ("two-tastes", "one-taste"):
    config = settings(dataset)
    pipeline.embed(config, tell=lambda line: None)
    found = pipeline.audit(config)
    low, high = found.gain_points_ci95
    print(
        f"{dataset}: {found.verdict}, p = {found.p_features:.2f}; many tastes gain "
        f"{found.gain_points:+.1f} points of accuracy [{low:+.1f}, {high:+.1f}]"
    )
    for line in found.limits:
        print(f"  {line}")

# %% [markdown]
# ## What the page says
#
# The audit writes a page with what divides people, what all like, and what a majority vote would
# discard. Two parts of it follow. Two groups were planted. That there is more than one taste is
# sure, but how many groups there are is not: other starts of the fit divide people otherwise (the
# stability is far below 1), so the page states no number of groups.

# %%
page = (config.paths.audits / "two-tastes-minilm" / "audit.md").read_text(encoding="utf-8")
parts = page.split("\n## ")
for title in ("Numbers", "What a majority vote"):
    print("## " + next(part for part in parts if part.startswith(title)))
