"""Exports as transformers models.

``pal export --merge`` folds a linear head into the encoder: plain transformers loads the folder.
Without it, importing this module teaches transformers the type ``pal``, and
``AutoModelForSequenceClassification.from_pretrained`` gives a
``PalForSequenceClassification``: the encoder by reference, the head from the folder, no remote
code. Heads that read the prompt apart (``pal-b``) have no place in either, for a sequence
classifier sees one sequence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from pal.embed.encoders.text import TextEncoder, pool
from pal.errors import RewardError
from pal.reward import folder as files
from pal.reward.live import LiveEncoder
from pal.reward.model import RewardModel, choose_device, download
from pal.train.heads.head import Head
from pal.train.heads.linear import LinearHead

PAD = "<|pad|>"
FOLD_TOLERANCE = 1e-2
"""of the spread of the golden scores; the cache's rounding of features is not repeated inside a
merged model"""


class PalConfig(PretrainedConfig):
    """``config.json`` of an export."""

    model_type = "pal"

    def __init__(self, pal: dict[str, Any] | None = None, **settings: Any) -> None:
        self.pal = pal or {}
        super().__init__(**settings)


class Score(nn.Module):
    """The head for one user as a function of features, (..., D) to (..., 1)."""

    def __init__(self, head: Head, code: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("code", code)
        self.code: Tensor

    def forward(self, features: Tensor) -> Tensor:
        flat = features.reshape(-1, features.shape[-1]).float()
        return self.head.reward(None, flat, self.code.expand(len(flat), -1)).reshape(
            *features.shape[:-1], 1
        )


class PalForSequenceClassification(PreTrainedModel):
    """``logits`` (B, 1) are rewards of whole sequences, for whoever the export was made for.

    ``score`` alone maps hidden states at all positions, as TRL's experimental PPO trainer asks of a
    reward model.
    """

    config_class = PalConfig
    base_model_prefix = "model"

    def __init__(self, config: PalConfig, encoder: TextEncoder, score: Score) -> None:
        super().__init__(config)
        self.encoder = encoder
        self.model = encoder.model
        self.score = score
        self.num_labels = 1

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *_: Any, **options: Any
    ) -> PalForSequenceClassification:
        """Load an export; ``device`` and ``encoder`` (a folder) are understood, dtype is that of
        the export."""
        place = Path(path) if Path(path).is_dir() else download(str(path), options.get("revision"))
        contents = files.read(place)
        require_text_head(contents.head, contents.facts)
        settings = contents.encoder_config
        if options.get("encoder") is not None:
            settings = settings.model_copy(update={"model": str(options["encoder"])})
        encoder = contents.facts["encoder"]
        device = choose_device(options.get("device") or "cpu")
        live = LiveEncoder.locate(
            encoder["name"], settings, place / files.DIGESTS, encoder["spec"], device
        )
        config = PalConfig.from_pretrained(place)
        return cls(config, live.encoder, Score(contents.head, contents.code).to(device)).eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Pool where the head was trained to read, whatever side the padding is on."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layer = self.encoder.layers[0]
        feature = pool(
            self.encoder._hidden_states(input_ids, mask.bool())[layer],
            mask,
            self.encoder.config.pooling,
        )
        if self.encoder.config.normalize:
            feature = nn.functional.normalize(feature, dim=1)
        return SequenceClassifierOutput(logits=self.score(feature))


def require_text_head(head: Head, facts: dict[str, Any]) -> None:
    """Raise RewardError for what a classifier of one text sequence cannot hold."""
    if facts["modality"] != "text":
        raise RewardError(
            "an image reward is no sequence classifier; load it with pal.reward.RewardModel"
        )
    if head.uses_prompt:
        raise RewardError(
            f"head {facts['train']['head']} reads the prompt apart from the response, which a "
            "sequence classifier "
            f"cannot; load it with pal.reward.RewardModel, or train pal-a"
        )


def describe(place: Path, model: RewardModel) -> None:
    """Write ``config.json`` and the tokenizer of an export that refers to its encoder."""
    settings: dict[str, Any] = {
        "model_type": "pal",
        "num_labels": 1,
        "hidden_size": model.facts["dim"],
    }
    if not model.is_image:
        tokenizer = model.encoder.encoder.renderer.tokenizer
        if tokenizer.pad_token_id is None:  # padding is masked, so any token does
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.save_pretrained(place)
        settings["pad_token_id"] = tokenizer.pad_token_id
        if not model.head.uses_prompt:
            settings["architectures"] = [PalForSequenceClassification.__name__]
    _write(place / files.CONFIG, {**settings, "pal": model.facts})


def merge_into(place: Path, model: RewardModel, golden: dict[str, Any]) -> None:
    """Write the encoder with the head folded into its score layer; raises RewardError where that is
    not the same.

    <(x - m) s, theta> = <x, s theta> - <m, s theta>; the constant, which no comparison sees, is
    left out where the layer has no bias, and is told in ``config.json`` as ``pal.constant``.
    """
    facts, head, settings = model.facts, model.head, model.encoder.source.config
    require_text_head(head, facts)
    elsewhere = (
        "export without --merge and load PalForSequenceClassification of pal.reward.tools.hf"
    )
    if not isinstance(head, LinearHead):
        raise RewardError(
            f"head {facts['train']['head']} is not linear, so it cannot be folded; {elsewhere}"
        )
    spec = model.encoder.source.spec
    if (
        settings.pooling != "last"
        or settings.layer != -1
        or spec.get("norm") != "post"
        or settings.normalize
    ):
        raise RewardError(
            f"transformers' classifiers read the last token after the final norm, but encoder "
            f"{model.encoder.source.name} was read with pooling {settings.pooling}, layer "
            f"{settings.layer}, norm "
            f"{spec.get('norm')}{', normalised' if settings.normalize else ''}; {elsewhere}"
        )
    direction = (head.theta(model.users.default.unsqueeze(0))[0] * head.item_scale.scale).detach()
    constant = -float((head.item_scale.mean * direction).sum())
    encoder: TextEncoder = model.encoder.encoder
    whole = _classifier(encoder, elsewhere)
    with torch.no_grad():
        whole.score.weight.copy_(direction.unsqueeze(0))
        if whole.score.bias is not None:
            whole.score.bias.fill_(constant)
            constant = 0.0
    _set_padding(whole, encoder.renderer.tokenizer)
    difference, spread = _compare(whole, model, golden, place, constant)
    if not difference <= FOLD_TOLERANCE * spread:
        raise RewardError(
            f"{type(whole).__name__} differs from the reward by {difference:.3g} where golden "
            "scores spread over "
            f"{spread:.3g}, so it reads other states than the head; {elsewhere}"
        )
    whole.save_pretrained(place)
    encoder.renderer.tokenizer.save_pretrained(place)
    config = json.loads((place / files.CONFIG).read_text(encoding="utf-8"))
    _write(
        place / files.CONFIG,
        {**config, "pal": {**facts, "constant": constant, "fold_max_abs_diff": difference}},
    )


def _classifier(encoder: TextEncoder, elsewhere: str) -> Any:
    """Return the encoder's architecture as a classifier with its weights and one fresh linear layer
    ``score``."""
    base = encoder.model
    config = type(base.config).from_dict({**base.config.to_dict(), "num_labels": 1})
    try:
        whole = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise RewardError(
            f"transformers has no classifier of {type(base).__name__}; {elsewhere}"
        ) from error
    if not isinstance(getattr(whole, "score", None), nn.Linear):
        raise RewardError(
            f"{type(whole).__name__} has no single linear layer over the last token to fold a "
            f"head into; {elsewhere}"
        )
    whole = whole.to(device=encoder.device, dtype=base.dtype).eval()
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict())
    whole.score.float()
    if base.dtype != torch.float32:
        whole.score.to(base.dtype)
    return whole


def _set_padding(whole: Any, tokenizer: Any) -> None:
    """Choose a pad token that ends no text: classifiers pool at the last token that is not
    padding."""
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        reserved = [
            token
            for token in tokenizer.get_vocab()
            if "pad" in token.lower() and token.startswith("<")
        ]
        tokenizer.pad_token = min(reserved) if reserved else PAD
        if tokenizer.pad_token_id is None or not reserved:
            tokenizer.add_special_tokens({"pad_token": PAD})
            whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    whole.config.pad_token_id = tokenizer.pad_token_id


@torch.inference_mode()
def _compare(
    whole: Any, model: RewardModel, golden: dict[str, Any], place: Path, constant: float
) -> tuple[float, float]:
    """Return the largest difference of the classifier's logits from the golden scores, and the
    scores' spread."""
    from pal.reward.live import table_of

    rows = [model.row(row["prompt"], row["response"]) for row in golden["inputs"]]
    encoder: TextEncoder = model.encoder.encoder
    inputs = encoder.prepare(table_of([row.item for row in rows]))
    found = torch.zeros(len(rows))
    for numbers in encoder.batches(inputs):
        ids, mask = encoder.load_batch(inputs, numbers).tensors
        ids[~mask] = whole.config.pad_token_id
        logits = whole(
            input_ids=ids.to(encoder.device), attention_mask=mask.long().to(encoder.device)
        ).logits
        found[torch.from_numpy(numbers)] = logits[:, 0].float().cpu() + constant
    scores = torch.tensor(golden["scores"])
    return float((found - scores).abs().max()), float(scores.max() - scores.min())


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


AutoConfig.register("pal", PalConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PalConfig, PalForSequenceClassification, exist_ok=True)

__all__ = ["PalConfig", "PalForSequenceClassification"]
