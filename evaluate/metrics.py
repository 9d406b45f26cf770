"""Pure functions of predictions (evaluation.md 2.2). n pairs, U users; natural logarithms.

``margin`` > 0 means the first item is predicted, ``label`` is P(first preferred), so every metric
is unchanged when the two items of a pair are swapped.
"""

from __future__ import annotations

import numpy as np

from pal.evaluate.crossed import Array, Crossing
from pal.evaluate.records import Cell, Interval


def sigmoid(margin: Array) -> Array:
    """Return P(first) for logit ``margin``, without overflow."""
    result: Array = np.exp(-np.logaddexp(0.0, -margin))
    return result


def credit(margin: Array, label: Array) -> Array:
    """Return each prediction's share of correctness, (n,): a margin of exactly 0 earns one half."""
    return np.where(margin > 0, label, np.where(margin < 0, 1.0 - label, 0.5))


def credit_with_ties(p: Array, label: Array, threshold: Array | float) -> Array:
    """Return PickScore's credit (n,): a tie is predicted where |P(first) - P(second)| <= threshold.

    1 where prediction and label agree, a tie on both sides included; 1/2 where exactly one of them
    is a tie.
    """
    predicted = np.where(np.abs(2.0 * p - 1.0) <= threshold, 0.5, np.where(p > 0.5, 1.0, 0.0))
    labelled = np.where(label > 0.5, 1.0, np.where(label < 0.5, 0.0, 0.5))
    one_tie = (predicted == 0.5) != (labelled == 0.5)
    return np.where(predicted == labelled, 1.0, np.where(one_tie, 0.5, 0.0))


def tie_threshold(p: Array, label: Array) -> float:
    """Return the best threshold of 0, 0.1, .. 1 on validation pairs, the first of equals; 0 where
    there is no pair."""
    if not len(p):
        return 0.0
    candidates = [step / 10.0 for step in range(11)]
    return candidates[int(np.argmax([credit_with_ties(p, label, t).mean() for t in candidates]))]


def tie_baseline(label: Array, threshold: float) -> float:
    """Return the expected credit of uniformly random probabilities under a threshold."""
    share = float(np.mean(label == 0.5))
    return (threshold + (1.0 - threshold) / 2.0) * share + 0.5 * (1.0 - share)


def negative_log_likelihoods(margin: Array, label: Array) -> Array:
    """Return cross-entropies in nats, (n,); an uninformed prediction has ln 2 = 0.6931."""
    found: Array = np.logaddexp(0.0, margin) - label * margin
    return found


def brier(margin: Array, label: Array) -> float:
    """Return the mean squared error of P(first); an uninformed prediction has 0.25."""
    return float(np.mean(np.square(sigmoid(margin) - label)))


def calibration_error(margin: Array, label: Array, bins: int) -> float:
    """Return the expected calibration error of the predicted side over equal-mass bins; answers
    with one confidence are alike, wherever a bin ends."""
    confidence = sigmoid(np.abs(margin))
    order = np.argsort(confidence, kind="stable")
    same = np.unique(confidence, return_inverse=True)[1]
    right = (np.bincount(same, credit(margin, label)) / np.bincount(same))[same]
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(right[part].mean() - confidence[part].mean()) for part in parts]
    return float(sum(gaps) / len(margin))


def area_under_curve(margin: Array, label: Array) -> float:
    """Return the symmetrised AUC over pairs that are not ties, NaN where all are.

    P(z_i + z_j > 0) of oriented margins z, equal ones counted half.
    """
    oriented = np.where(label > 0.5, margin, -margin)[label != 0.5]
    if not len(oriented):
        return float("nan")
    mirrored = np.sort(-oriented)
    above = np.searchsorted(mirrored, oriented, side="left") + np.searchsorted(
        mirrored, oriented, side="right"
    )
    return float(above.mean() / (2.0 * len(oriented)))


def worst_decile(per_user: Array) -> float:
    """Return the mean of the lowest tenth of users, at least one; sorting noise biases it
    downwards."""
    lowest = np.sort(per_user)[: max(1, -(-len(per_user) // 10))]
    return float(lowest.mean())


def summarize(
    margin: Array,
    label: Array,
    crossing: Crossing,
    bins: int,
    right: Array | None = None,
) -> Cell:
    """Return one cell of ``metrics.json``; all inputs (n,), n > 0.

    ``right`` is each prediction's credit under another rule than ``credit``. Intervals are crossed,
    over users and prompts.
    """
    right = credit(margin, label) if right is None else right
    macro = crossing.macro(right)
    likelihood = crossing.micro(negative_log_likelihoods(margin, label))
    auc = area_under_curve(margin, label)
    return Cell(
        n_pairs=len(margin),
        n_users=crossing.n_users,
        n_prompts=crossing.n_prompts,
        accuracy=float(right.mean()),
        macro_accuracy=macro.value,
        macro_ci95=macro.ci95_of_share,
        ci95_from=macro.side,
        worst_decile=worst_decile(crossing.user_means(right)),
        nll=likelihood.value,
        nll_ci95=not_negative(likelihood.ci95),
        brier=brier(margin, label),
        ece=calibration_error(margin, label, bins),
        auc=None if np.isnan(auc) else auc,
    )


def not_negative(interval: Interval | None) -> Interval | None:
    """Cut an interval to the values that a mean of costs can have."""
    return None if interval is None else (max(interval[0], 0.0), interval[1])
