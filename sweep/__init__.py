"""Many heads from one cache: planned, trained in stacks, recorded one by one, the best published.

sweeps/<name>/plan.json         SweepPlan: which heads are trained together, fixed when first seen
sweeps/<name>/results.parquet   one row per finished head, rewritten whole after every stack
sweeps/<name>/summary.json      SweepSummary: what ``pal sweep --json`` prints
sweeps/<name>/table.csv         the table that ``pal sweep`` prints, with all rows
sweeps/<name>/folds/of-<N>/     with ``sweep.folds``: what a head predicts in a fold that it led
sweeps/<name>/best/             the best head by validation, which becomes the run ``<name>-best``
sweeps/<name>/study.json        what Optuna was asked, in sweeps that it proposes
"""
