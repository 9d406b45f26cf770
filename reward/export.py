"""A run and a choice of user become a folder that needs nothing else of this project's files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pal.errors import RewardError
from pal.files import digest
from pal.names import name_from, require_name
from pal.records import Entry
from pal.reward.card import card, for_repository
from pal.reward.export_record import (
    CARD,
    HEAD,
    ChoiceKind,
    Contents,
    ExportRecord,
    Golden,
    tuned_priors,
    write_golden,
    write_head,
)
from pal.reward.golden import golden_difference, golden_inputs, score_golden
from pal.reward.model import RewardModel
from pal.reward.users import prototype_vector, vector_of_weights
from pal.train.adapt.prior import Priors
from pal.train.build import build_head
from pal.users import user_name

MOST_WEIGHTS = 64
"""numbers of a user's vector that are also told in the record and on the card"""


@dataclass(frozen=True)
class Choice:
    """Whose reward an export gives when nobody is named."""

    kind: ChoiceKind = "population"
    user: str | None = None
    weights: tuple[float, ...] = ()
    prototype: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "user", user_name(self.user))
        if self.kind == "user" and self.user is None:
            raise RewardError("a user is to be exported, but no id is given; name one with --user")

    @property
    def suffix(self) -> str:
        """What the choice adds to the name of an export."""
        if self.kind == "user":
            return f"user-{self.user}"
        if self.kind == "weights":
            return "weights-" + "-".join(f"{weight:g}" for weight in self.weights)
        return f"prototype-{self.prototype}" if self.kind == "prototype" else "population"


class ExportSummary(Entry):
    """What ``pal export --json`` prints."""

    dir: str
    run: str
    kind: ChoiceKind
    user: str | None
    weights: list[float] | None
    users: int
    """how many the export knows by id"""
    merged: bool
    untrained: bool
    golden_max_abs_diff: float
    """how well the export, loaded again, gives its golden scores"""


def export_folder(exports: Path, run: str, choice: Choice, name: str | None = None) -> Path:
    """Return where an export is written; raises RewardError for what cannot be a name."""
    if name is None:
        whole = f"{run}-{choice.suffix}"
        name = name_from(whole, longest=90)
        name = whole if name == whole else f"{name}-{digest(whole, 4)}"
    return exports / require_name("export", name, RewardError)


def chosen_vector(model: RewardModel, choice: Choice, adapted: Tensor | None) -> Tensor:
    """Return the user vector of the choice, (R,).

    ``adapted`` is that of a user who is not in the head's table.
    """
    users = model.metadata.users
    if choice.kind == "user":
        if choice.user in users:
            return model.users.vector(choice.user)
        if adapted is None:
            raise RewardError(
                f"user {choice.user!r} is neither in run {model.metadata.run} nor in its dataset; "
                "choose another, or export the --population"
            )
        return adapted
    if choice.kind == "weights":
        return vector_of_weights(model.head, choice.weights)
    if choice.kind == "prototype":
        return prototype_vector(model.head, choice.prototype)
    return model.users.default


def export(
    model: RewardModel,
    choice: Choice,
    folder: Path,
    *,
    merge: bool = False,
    adapted: Tensor | None = None,
    prior: Priors | None = None,
    table: str = "",
) -> ExportSummary:
    """Write an opened run as an export, load it again, and return what it is.

    ``adapted`` and ``prior`` are what few-shot adaptation found, ``table`` the run's evaluation in
    Markdown. An export of one user holds nothing of the others: neither table nor prior.
    """
    ExportRecord.require_replaceable(folder)
    vector = chosen_vector(model, choice, adapted)
    contents = contents_for(model.contents, choice, vector, prior or model.contents.prior, merge)
    chosen = RewardModel(contents, model.encoder)
    with ExportRecord.replace(folder) as temporary:
        inputs = golden_inputs(chosen.is_image)
        golden = Golden(
            user=contents.metadata.user, inputs=inputs, scores=score_golden(chosen, inputs)
        )
        seals = {
            HEAD: write_head(temporary, contents),
            Golden.file: write_golden(temporary, golden),
        }
        record = contents.metadata.model_copy(update={"files": seals})
        record = _write_for_transformers(temporary, chosen, record, golden)
        text = card(record, folder.name, table)
        (temporary / CARD).write_text(text, encoding="utf-8")
        record.write(temporary)
        again = RewardModel.from_pretrained(
            temporary,
            device="cpu",
            encoder=_encoder_folder(model, merge),
            trust_remote_code=model.encoder.source.config.trust_remote_code,
        )
        difference = golden_difference(again, golden)
    return ExportSummary(
        dir=str(folder),
        run=record.run,
        kind=record.choice,
        user=record.user,
        weights=record.weights,
        users=len(record.users),
        merged=record.merged,
        untrained=record.untrained,
        golden_max_abs_diff=difference,
    )


def contents_for(
    run: Contents, choice: Choice, vector: Tensor, prior: Priors | None, merge: bool
) -> Contents:
    """Return what goes into the folder.

    For one user, or a merged model, that is a head whose table is empty, and no prior.
    """
    is_fixed = choice.kind == "user" or merge
    head, users = run.head, run.metadata.users
    if is_fixed:
        state = head.state_dict()
        head = build_head(run.metadata.train, run.metadata.dim, 0)
        head.load_state_dict({**state, "users.logits": head.users.logits.detach()})
        users, prior = [], None
    numbers = [round(float(value), 6) for value in vector]
    changed = {
        "choice": choice.kind,
        "user": choice.user if choice.kind == "user" else None,
        "weights": numbers if len(numbers) <= MOST_WEIGHTS else None,
        "users": users,
        "fixed": is_fixed,
        "merged": merge,
        "priors": [] if prior is None else tuned_priors(prior),
    }
    record = run.metadata.model_copy(update=changed)
    return replace(run, metadata=record, head=head.eval(), user_vector=vector.detach(), prior=prior)


def _write_for_transformers(
    folder: Path, model: RewardModel, record: ExportRecord, golden: Golden
) -> ExportRecord:
    """Write what transformers reads; return the record, with what merging found."""
    from pal.reward.tools.hf import describe

    if not record.merged:
        describe(folder, model)
        return record
    from pal.reward.tools.merge import merge_into

    merged = merge_into(folder, model, golden)
    return record.model_copy(
        update={
            "constant": merged.constant,
            "fold_max_abs_diff": merged.difference,
            "merged_spec": merged.spec,
        }
    )


def _encoder_folder(model: RewardModel, merge: bool) -> Path | None:
    """Return where the encoder's files are now, if the export will look for them elsewhere."""
    name = model.encoder.source.config.model
    return Path(name) if name is not None and Path(name).is_dir() and not merge else None


def push(place: Path, repo: str, private: bool = True) -> str:
    """Upload an export to the Hub, private unless asked otherwise, and return its address.

    The card there loads the repository, the one here the folder.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    text = for_repository((place / CARD).read_text(encoding="utf-8"), place.name, repo)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=place, repo_id=repo, ignore_patterns=[CARD])
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=CARD, repo_id=repo)
    except Exception as error:
        raise RewardError(
            f"cannot upload {place} to {repo} ({type(error).__name__}); log in with hf auth login "
            "and check the name"
        ) from error
    return str(address)


def parse_weights(text: str) -> tuple[float, ...]:
    """Read ``0.3,0.7``; raises RewardError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RewardError(
            f"--weights takes numbers with commas between them, not {text!r}"
        ) from error


def one_choice(
    user: str | None, weights: str | None, population: bool, prototype: int | None
) -> Choice:
    """Return the one choice of four options; none is the population.

    Raises RewardError for several.
    """
    options = {
        "--user": user,
        "--weights": weights,
        "--population": population or None,
        "--prototype": prototype,
    }
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise RewardError(f"{' and '.join(given)} exclude each other; give one of them")
    if user is not None:
        return Choice("user", user=user)
    if weights is not None:
        return Choice("weights", weights=parse_weights(weights))
    return Choice() if prototype is None else Choice("prototype", prototype=prototype)
