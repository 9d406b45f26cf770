"""A run and a choice of user become a folder that needs nothing else of this project's files."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import pal
from pal.config import Config
from pal.errors import RewardError
from pal.files import atomic_directory, digest
from pal.reward import folder as files
from pal.reward.card import card
from pal.reward.folder import Contents
from pal.reward.model import RewardModel, golden_difference, score_golden
from pal.reward.users import code_of, prototype_code
from pal.train.adapt.map import Prior
from pal.train.heads.head import build_head, resolve
from pal.train.run_record import TrainedHead

# Written for the purpose: an export repeats nobody's data.
GOLDEN_TEXTS: list[tuple[Any, str]] = [
    ("What should I cook tonight?", " A soup of lentils and carrots takes half an hour."),
    ("What should I cook tonight?", " Nothing. Order something."),
    ("Would you say this of yourself?\n\"I enjoy long walks\"", " Yes"),
    ("Would you say this of yourself?\n\"I enjoy long walks\"", " No"),
    ("Erkläre mir Primzahlen – kurz.", " Zahlen über 1, die nur 1 und sich selbst als Teiler haben: 2, 3, 5, 7 …"),
    ([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day. How can I help?"},
      {"role": "user", "content": "Tell me a story."}], " Once there was a clock that was always five minutes early."),
    ("Summarise: " + "the river was long and slow. " * 60, " A slow river. " + "It went on and on. " * 40),
    ("1 + 1 =", " 2"),
]  # fmt: skip
GOLDEN_PROMPTS = ["a red bicycle in the rain", "a cat asleep on a keyboard", "mountains at dawn"]


@dataclass(frozen=True)
class Choice:
    """Whose reward an export gives when nobody is named."""

    kind: Literal["user", "weights", "population", "prototype"] = "population"
    user: str | None = None
    weights: tuple[float, ...] = ()
    prototype: int = 0

    @property
    def suffix(self) -> str:
        """What the choice adds to the name of an export; one that a file name cannot hold becomes a
        digest of it."""
        if self.kind == "user":
            assert self.user is not None
            plain = re.sub(r"[^A-Za-z0-9._-]", "_", self.user)[:60]
            return f"user-{plain}" + ("" if plain == self.user else f"-{digest(self.user, 4)}")
        if self.kind == "weights":
            return "weights-" + "-".join(f"{weight:g}" for weight in self.weights)
        return f"prototype-{self.prototype}" if self.kind == "prototype" else "population"


def chosen_code(trained: TrainedHead, choice: Choice, adapted: Tensor | None) -> Tensor:
    """Return the code of the choice, (R,); ``adapted`` is that of a user who is not in the head's
    table."""
    head, name = trained.head, trained.facts["train"]["head"]
    if choice.kind == "user":
        if choice.user in trained.users:
            return head.users(torch.tensor([trained.users.index(choice.user)]))[0].detach()
        if adapted is None:
            raise RewardError(
                f"user {choice.user!r} is neither in run {trained.facts['run']} nor in its "
                "dataset; choose another, or "
                f"export the --population"
            )
        return adapted
    if choice.kind == "weights":
        return code_of(head, name, choice.weights)
    if choice.kind == "prototype":
        return prototype_code(head, name, choice.prototype)
    return head.users.population().detach()


def export(
    config: Config, trained: TrainedHead, choice: Choice, name: str | None = None, *, merge: bool = False,
    adapted: Tensor | None = None, prior: Prior | None = None, table: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Write ``exports/<name>``, load it again, and return what it is and how well it gives its
    golden scores.

    ``adapted`` and ``prior`` are what few-shot adaptation found, ``table`` the run's evaluation in
    Markdown. An export of one user holds nothing of the others: neither table nor prior.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise RewardError(
            f"--name {name!r} is no name of a folder under {config.paths.exports}; leave out "
            "separators"
        )
    target = config.paths.exports / (name or f"{trained.facts['run']}-{choice.suffix}")
    code = chosen_code(trained, choice, adapted)
    live = RewardModel.of(config, trained, code)
    contents = contents_of(live.contents, choice, prior, merge)
    contents.facts["pal_version"] = pal.__version__
    model = RewardModel(contents, live.encoder)
    with atomic_directory(target) as temporary:
        files.write_head(temporary, contents)
        inputs = golden_inputs(temporary, model.is_image)
        scores = score_golden(model, inputs, temporary)
        golden = {"user": contents.facts["user"], "inputs": inputs, "scores": scores}
        _write_json(temporary / files.GOLDEN, golden)
        if merge:
            from pal.reward.tools.hf import merge_into

            merge_into(temporary, model, golden)
        else:
            from pal.reward.tools.hf import describe

            describe(temporary, model)
        (temporary / files.CARD).write_text(
            card(contents.facts, target.name, table), encoding="utf-8"
        )
        again = RewardModel.from_pretrained(
            temporary, device="cpu", encoder=_encoder_of(live, merge)
        )
        difference = golden_difference(again, golden, temporary)
        (temporary / files.DIGESTS).unlink(missing_ok=True)
    return {
        "dir": str(target),
        "run": trained.facts["run"],
        "kind": choice.kind,
        "user": contents.facts["user"],
        "weights": contents.facts["weights"],
        "users": len(contents.users),
        "merged": merge,
        "untrained": contents.facts["untrained"],
        "golden_max_abs_diff": difference,
    }


def _encoder_of(live: RewardModel, merge: bool) -> Path | None:
    """Return where the encoder's files are now, if the export will look for them elsewhere."""
    settings = live.encoder.source.config
    is_local = settings.model is not None and Path(settings.model).is_dir()
    return Path(settings.model or "") if is_local and not merge else None


def contents_of(run: Contents, choice: Choice, prior: Prior | None, merge: bool) -> Contents:
    """Return what goes into the folder: for one user, or a merged model, a head whose table is
    empty."""
    is_fixed = choice.kind == "user" or merge
    head, users = run.head, run.users
    prior = prior or run.prior
    if is_fixed:
        settings = resolve(type(Config().train).model_validate(run.facts["train"]))
        head = build_head(settings, run.facts["dim"], 0)
        state = {n: value for n, value in run.head.state_dict().items() if n != "users.logits"}
        head.load_state_dict({**state, "users.logits": head.users.logits.detach()})
        users, prior = [], None
    numbers = [round(float(value), 6) for value in run.code] if len(run.code) <= 64 else None
    facts = {
        **run.facts,
        "choice": choice.kind,
        "user": choice.user if choice.kind == "user" else None,
        "weights": numbers,
        "fixed": is_fixed,
        "merged": merge,
        "prior_by_community": prior is not None and prior.by_community,
    }
    return Contents(facts, head.eval(), users, run.code, prior)


def golden_inputs(place: Path, is_image: bool) -> list[dict[str, Any]]:
    """Return inputs that try templates, length and scripts; images are drawn into the folder
    ``golden/``."""
    if not is_image:
        return [{"prompt": prompt, "response": response} for prompt, response in GOLDEN_TEXTS]
    from PIL import Image

    (place / "golden").mkdir()
    rows = []
    for number in range(6):
        x, y = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 64))
        waves = [np.sin((number + 1) * (c + 1) * 3 * x + number * y * math.pi) for c in range(3)]
        pixels = (127.5 * (1 + np.stack(waves, axis=2))).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        (place / "golden" / f"{number}.png").write_bytes(out.getvalue())
        rows.append(
            {
                "prompt": GOLDEN_PROMPTS[number % len(GOLDEN_PROMPTS)],
                "image": f"golden/{number}.png",
            }
        )
    return rows


def push(place: Path, repo: str, private: bool = True) -> str:
    """Upload an export to the Hub, private unless asked otherwise, and return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=place, repo_id=repo, ignore_patterns=[files.DIGESTS])
    except Exception as error:
        raise RewardError(
            f"cannot upload {place} to {repo} ({type(error).__name__}); log in with hf auth login "
            "and check the name"
        ) from error
    return str(address)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
    """Return the one choice of four options; none is the population. Raises RewardError for
    several."""
    given = [
        option
        for option, value in (("--user", user), ("--weights", weights), ("--population", population or None),
                              ("--prototype", prototype))
        if value is not None
    ]  # fmt: skip
    if len(given) > 1:
        raise RewardError(f"{' and '.join(given)} exclude each other; give one of them")
    if user is not None:
        return Choice("user", user=user)
    if weights is not None:
        return Choice("weights", weights=parse_weights(weights))
    return Choice() if prototype is None else Choice("prototype", prototype=prototype)
