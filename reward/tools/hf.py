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
from dataclasses import dataclass
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

from pal.embed.encoder import locate
from pal.embed.encoders.text import TextEncoder, pool
from pal.errors import RewardError
from pal.records import JsonObject
from pal.reward.export_record import (
    CONFIG,
    ExportRecord,
    Golden,
    Modality,
    read_contents,
)
from pal.reward.loading import encoder_settings, folder_of, load_encoder
from pal.reward.model import RewardModel
from pal.train.heads.head import Head
from pal.train.heads.linear import LinearHead

PAD = "<|pad|>"
FOLD_TOLERANCE = 1e-2
"""of the spread of the golden scores; the cache's rounding of features is not repeated inside a
merged model"""
ELSEWHERE = "export without --merge and load PalForSequenceClassification of pal.reward.tools.hf"


class PalConfig(PretrainedConfig):
    """``config.json`` of an export; its block ``pal`` names the record, which has all the rest."""

    model_type = "pal"

    def __init__(self, pal: dict[str, Any] | None = None, **settings: Any) -> None:
        self.pal = pal or {}
        super().__init__(**settings)


class Score(nn.Module):
    """The head for one user as a function of features, (..., D) to (..., 1)."""

    def __init__(self, head: Head, user_vector_R: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("user_vector", user_vector_R)
        self.user_vector: Tensor

    def forward(self, features: Tensor) -> Tensor:
        flat = features.reshape(-1, features.shape[-1]).float()
        rewards = self.head.reward(None, flat, self.user_vector.expand(len(flat), -1))
        return rewards.reshape(*features.shape[:-1], 1)


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
        """Load an export; the dtype is that of the export.

        Of the options ``device``, ``encoder`` (a folder with its files), ``revision`` and
        ``trust_remote_code`` are understood; without the last no code of the encoder's runs,
        whatever the export says.
        """
        folder = folder_of(path, options.get("revision"))
        contents = read_contents(folder)
        require_text_head(contents.head, contents.metadata.modality)
        live = load_encoder(
            folder,
            contents.metadata,
            options.get("device") or "cpu",
            options.get("encoder"),
            options.get("trust_remote_code") is True,
        )
        config = PalConfig.from_pretrained(folder)
        score = Score(contents.head, contents.user_vector).to(live.device)
        return cls(config, live.encoder, score).eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Pool where the head was trained to read, whatever side the padding is on."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layer = self.encoder.layers[0]
        states = self.encoder._hidden_states(input_ids, mask.bool())[layer]
        feature = pool(states, mask, self.encoder.config.pooling)
        if self.encoder.config.normalize:
            feature = nn.functional.normalize(feature, dim=1)
        return SequenceClassifierOutput(logits=self.score(feature))


def require_text_head(head: Head, modality: Modality) -> None:
    """Raise RewardError for what a classifier of one text sequence cannot hold."""
    if modality != "text":
        raise RewardError(
            "an image reward is no sequence classifier; load it with pal.reward.RewardModel"
        )
    if head.uses_prompt:
        raise RewardError(
            f"head {head.name} reads the prompt apart from the response, which a sequence "
            "classifier cannot; load it with pal.reward.RewardModel, or train pal-a"
        )


def describe(folder: Path, model: RewardModel) -> None:
    """Write ``config.json`` and the tokenizer of an export that refers to its encoder."""
    settings: dict[str, Any] = {
        "model_type": "pal",
        "num_labels": 1,
        "hidden_size": model.metadata.dim,
    }
    if not model.is_image:
        tokenizer = model.encoder.encoder.renderer.tokenizer
        if tokenizer.pad_token_id is None:  # padding is masked, so any token does
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.save_pretrained(folder)
        settings["pad_token_id"] = tokenizer.pad_token_id
        if not model.head.uses_prompt:
            settings["architectures"] = [PalForSequenceClassification.__name__]
    _write_config(folder, settings)


@dataclass(frozen=True)
class Merged:
    """What folding a head into its encoder found."""

    constant: float
    """what the logits lack to be rewards"""
    difference: float
    """largest difference from the golden scores"""
    spec: JsonObject
    """the specification of the encoder that now lies in the folder"""


def merge_into(folder: Path, model: RewardModel, golden: Golden) -> Merged:
    """Write the encoder with the head folded into its score layer.

    <(x - m) s, theta> = <x, s theta> - <m, s theta>; the constant, which no comparison sees, is
    left out where the layer has no bias, and is told in the record. Raises RewardError where the
    merged model does not give the same.
    """
    require_text_head(model.head, model.metadata.modality)
    head = _require_foldable(model)
    encoder: TextEncoder = model.encoder.encoder
    direction = (head.theta(model.users.default.unsqueeze(0))[0] * head.item_scale.scale).detach()
    constant = -float((head.item_scale.mean * direction).sum())
    whole = _classifier(encoder)
    with torch.no_grad():
        whole.score.weight.copy_(direction.unsqueeze(0))
        if whole.score.bias is not None:
            whole.score.bias.fill_(constant)
            constant = 0.0
    _set_padding(whole, encoder.renderer.tokenizer)
    difference, spread = _compare(whole, model, golden, constant)
    if not difference <= FOLD_TOLERANCE * spread:
        raise RewardError(
            f"{type(whole).__name__} differs from the reward by {difference:.3g} where golden "
            f"scores spread over {spread:.3g}, so it reads other states than the head; {ELSEWHERE}"
        )
    whole.save_pretrained(folder)
    encoder.renderer.tokenizer.save_pretrained(folder)
    _write_config(folder, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    settings, _ = encoder_settings(folder, model.metadata, None, trust_remote_code=False)
    source = locate(model.metadata.encoder.name, settings, None)
    return Merged(constant, difference, json.loads(json.dumps(source.spec)))


def _require_foldable(model: RewardModel) -> LinearHead:
    """Return the head if it is linear and reads what transformers' classifiers read."""
    head, source = model.head, model.encoder.source
    if not isinstance(head, LinearHead):
        raise RewardError(f"head {head.name} is not linear, so it cannot be folded; {ELSEWHERE}")
    settings, norm = source.config, source.spec.get("norm")
    is_last = settings.pooling == "last" and settings.layer == -1
    if not is_last or norm != "post" or settings.normalize:
        raise RewardError(
            "transformers' classifiers read the last token after the final norm, but encoder "
            f"{source.name} was read with pooling {settings.pooling}, layer {settings.layer}, norm "
            f"{norm}{', normalised' if settings.normalize else ''}; {ELSEWHERE}"
        )
    return head


def _classifier(encoder: TextEncoder) -> Any:
    """Return the encoder's architecture as a classifier: its weights, a fresh layer ``score``."""
    base = encoder.model
    config = type(base.config).from_dict({**base.config.to_dict(), "num_labels": 1})
    try:
        whole = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise RewardError(
            f"transformers has no classifier of {type(base).__name__}; {ELSEWHERE}"
        ) from error
    if not isinstance(getattr(whole, "score", None), nn.Linear):
        raise RewardError(
            f"{type(whole).__name__} has no single linear layer over the last token to fold a "
            f"head into; {ELSEWHERE}"
        )
    whole = whole.to(device=encoder.device, dtype=base.dtype).eval()
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict())
    return whole


def _set_padding(whole: Any, tokenizer: Any) -> None:
    """Choose a pad token that ends no text: classifiers pool at the last token that is none."""
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        names = tokenizer.get_vocab()
        reserved = [name for name in names if "pad" in name.lower() and name.startswith("<")]
        tokenizer.pad_token = min(reserved) if reserved else PAD
        if tokenizer.pad_token_id is None or not reserved:
            tokenizer.add_special_tokens({"pad_token": PAD})
            whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    whole.config.pad_token_id = tokenizer.pad_token_id


@torch.inference_mode()
def _compare(
    whole: Any, model: RewardModel, golden: Golden, constant: float
) -> tuple[float, float]:
    """Return the largest difference of the classifier's logits from the golden scores, and the
    scores' spread."""
    items = [model.row(row.prompt, row.response).item for row in golden.inputs]
    encoder: TextEncoder = model.encoder.encoder
    inputs = encoder.prepare(items)
    found = torch.zeros(len(items))
    for numbers in encoder.batches(inputs):
        ids, mask = encoder.load_batch(inputs, numbers).tensors
        ids[~mask] = whole.config.pad_token_id
        ids, mask = ids.to(encoder.device), mask.long().to(encoder.device)
        logits = whole(input_ids=ids, attention_mask=mask).logits
        found[torch.from_numpy(numbers)] = logits[:, 0].float().cpu() + constant
    scores = torch.tensor(golden.scores)
    return float((found - scores).abs().max()), float(scores.max() - scores.min())


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    block = {"format": ExportRecord.version, "export": ExportRecord.file}
    text = json.dumps({**settings, "pal": block}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


AutoConfig.register("pal", PalConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PalConfig, PalForSequenceClassification, exist_ok=True)

__all__ = ["PalConfig", "PalForSequenceClassification"]
