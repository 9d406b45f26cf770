"""From what the tests found to the folder of an audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pal.audit.describe import disagreement, krippendorff_alpha
from pal.audit.drawing import drawing_of
from pal.audit.groups import clear_groups
from pal.audit.ledger import DRAWS, Ledger
from pal.audit.limits import limits_of, why_not
from pal.audit.listing import Listing
from pal.audit.load import load
from pal.audit.page import NULL, USERS, Content, as_page
from pal.audit.pictures import draw_nulls, draw_users
from pal.audit.record import AuditPlan, AuditRecord, Group, Part
from pal.audit.run import Audit, Findings, sizes
from pal.audit.search import answers_per_user
from pal.audit.thumbnails import write_thumbnails
from pal.audit.verdict import Evidence, judged
from pal.cache.reader import FeatureStore
from pal.config import AuditConfig
from pal.dataset import PreparedDataset
from pal.evaluate.compare import holm
from pal.files import digest, file_sha256, locked

Progress = Callable[[int], None]
PAGE = "audit.md"
METHOD = 2
"""another number makes all draws anew"""


def audit(
    settings: AuditConfig,
    seed: int,
    dataset: PreparedDataset,
    store: FeatureStore | None,
    folder: Path,
    progress: Progress,
) -> AuditRecord:
    """Audit a dataset into a folder and return the record; ``store``: None without features.

    What the folder has of the same audit is taken over, as are the draws of one that was killed.
    What was there stays until the new audit takes its place as a whole. Raises EvaluationError
    where the folder is something else, or nothing can be audited.
    """
    identity = digest(
        [
            METHOD,
            dataset.pairs_digest,
            dataset.items_digest,
            seed,
            settings.folds,
            settings.by,
            None if store is None else [store.fingerprint, store.items_digest],
        ]
    )
    encoder = None if store is None else store.manifest.encoder
    plan = AuditPlan(dataset=dataset.name, encoder=encoder, identity=identity)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.draws.unfinished"
    with locked(folder):
        AuditPlan.require_replaceable(folder)
        record = _finished(folder, plan, settings)
        if record is None:
            with drawing_of(settings) as drawing:
                loaded = load(dataset, store, settings.by)
                ledger = Ledger(unfinished, identity, folder / DRAWS)
                found = Audit(loaded, settings, seed, ledger, progress, drawing).run()
            record = _record(settings, dataset, store, folder.name, found)
            with AuditPlan.replace(folder) as new:
                plan.write(new)
                ledger.write(new / DRAWS)
                record = _written(new, record, found)
        unfinished.unlink(missing_ok=True)
        return record


def _finished(folder: Path, plan: AuditPlan, settings: AuditConfig) -> AuditRecord | None:
    """Return the record of a folder that is this audit, whole and undamaged."""
    record = AuditRecord.find(folder) if folder.is_dir() else None
    if record is None or AuditPlan.find(folder) != plan:
        return None
    asked = (settings.permutations, settings.overlap_draws, settings.power)
    if (record.permutations, record.overlap_draws, record.power_asked) != asked:
        return None
    whole = all(
        (folder / name).is_file() and file_sha256(folder / name) == seal
        for name, seal in record.files.items()
    )
    return record if whole else None


def _record(
    settings: AuditConfig,
    dataset: PreparedDataset,
    store: FeatureStore | None,
    name: str,
    found: Findings,
) -> AuditRecord:
    loaded, b, a = found.loaded, found.features, found.overlap
    answers = loaded.answers
    missing = why_not(answers, settings, b is None)
    if settings.features:
        gain = None if b is None else b.gain
        evidence = Evidence(
            "the test that reads features",
            None if b is None else b.p,
            settings.permutations,
            None if gain is None else gain.default.ci95,
            None if gain is None else gain.nats.value,
            None if gain is None else gain.nats.ci95,
            None if gain is None else gain.points.value,
            missing,
            found.power,
        )
    else:
        p = None if a is None else a.p
        evidence = Evidence(
            "the test of common pairs", p, settings.overlap_draws, None, None, None, None, missing,
            found.power,
        )  # fmt: skip
    verdict, sentence = judged(evidence)
    shown = found.shown if verdict == "plural" else None
    opposed = [one for one in found.power or () if one.other == "opposite"]
    groups = None
    if shown is not None and b is not None:
        groups = clear_groups(shown.division, shown.stability)
    elif b is not None:
        groups = 1
    return AuditRecord(
        name=name,
        dataset=dataset.name,
        encoder=None if store is None else store.manifest.encoder,
        untrained=store is not None and store.manifest.untrained,
        verdict=verdict,
        sentence=sentence,
        limits=limits_of(settings, dataset, store, found, verdict),
        gain_nats=None if b is None else b.gain.nats.value,
        gain_ci95=None if b is None else b.gain.nats.ci95,
        gain_points=None if b is None else b.gain.points.value,
        gain_points_ci95=None if b is None else b.gain.points.ci95,
        users_who_gain=None if b is None else b.gain.users_who_gain,
        strength=None if b is None else b.gain.strength,
        gain_default=None if b is None else b.gain.default.value,
        p_overlap=None if a is None else a.p,
        p_overlap_permutation=None if a is None else a.p_permutation,
        overlap_users=0 if a is None else a.users,
        overlap_pairs=0 if a is None else a.pairs,
        directions=None if a is None else a.directions,
        p_features=None if b is None else b.p,
        p_permutation=None if b is None else b.p_permutation,
        strata=None if b is None else b.strata,
        permutations=settings.permutations,
        overlap_draws=settings.overlap_draws,
        groups=groups,
        silhouette=None if shown is None or b is None else shown.division.silhouette,
        group_stability=None if shown is None else shown.stability,
        groups_shown=[] if shown is None else [
            Group(users=users, overruled=lost)
            for users, lost in zip(sizes(shown.division.group), shown.overruled, strict=True)
        ],
        smallest_share=opposed[0].share if opposed else None,
        power=found.power,
        power_asked=settings.power,
        users=answers.users,
        copies=loaded.copies,
        answers=len(answers),
        answers_left_out=loaded.left_out,
        answers_per_user=answers_per_user(answers),
        things=answers.things,
        prompt_groups=answers.groups,
        disagreement=disagreement(answers),
        krippendorff_alpha=krippendorff_alpha(answers),
        median_reliability=None if b is None else float(np.median(b.population.reliability)),
        careless_share=found.careless,
        between_users=None if found.tastes is None else found.tastes.between,
        overruled=found.overruled,
        overruled_users=found.overruled_users,
        parts=_parts(found),
        seconds=round(found.seconds, 1),
    )  # fmt: skip


def _parts(found: Findings) -> list[Part]:
    if found.features is None:
        return []
    gains, ps = found.features.gain.parts, found.features.p_parts
    names = found.loaded.answers.parts
    return [
        Part(
            part=name, answers=gain.answers, users=gain.users,
            gain_nats=None if gain.nats is None else gain.nats.value,
            gain_ci95=None if gain.nats is None else gain.nats.ci95, p=p, p_holm=corrected,
        )
        for name, gain, p, corrected in zip(names, gains, ps, holm(ps), strict=True)
    ]  # fmt: skip


def _written(folder: Path, record: AuditRecord, found: Findings) -> AuditRecord:
    """Write page and pictures, and the record last, which names them."""
    shown = found.shown if record.groups_shown else None
    pictures, content = [], None
    thumbnails: dict[int, str] = {}
    if shown is not None:
        is_clear = record.groups is not None and record.groups > 1
        draw_users(
            folder / USERS, shown.axis, shown.division.group, "group" if is_clear else "part"
        )
        pictures.append(USERS)
        listing, loaded = Listing.of(shown.judged), found.loaded
        if loaded.places:
            thumbnails = write_thumbnails(folder, loaded.places, listing.things)
        content = Content(shown.judged, listing, loaded.shown, loaded.agree, thumbnails)
    tests = []
    if found.overlap is not None:
        tests.append(("largest eigenvalue (test A)", found.overlap.statistic, found.overlap.null))
    if found.features is not None:
        default = found.features.gain.default.value
        tests.append(("gain, nats an answer (test B)", default, found.features.null))
    if tests:
        draw_nulls(folder / NULL, tests)
        pictures.append(NULL)
    (folder / PAGE).write_text(as_page(record, content, pictures), encoding="utf-8")
    files = {name: file_sha256(folder / name) for name in (PAGE, *pictures, *thumbnails.values())}
    record = record.model_copy(update={"files": files})
    record.write(folder)
    return record
