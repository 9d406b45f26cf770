"""A linear head folded into the encoder that it reads: a classifier of transformers' own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from pal.embed.encoder import locate
from pal.embed.encoders.text import TextEncoder
from pal.errors import RewardError
from pal.records import JsonObject
from pal.reward.export_record import CONFIG, Golden
from pal.reward.loading import encoder_settings
from pal.reward.model import RewardModel
from pal.reward.tools.hf import ELSEWHERE, require_text_head, save_tokenizer, write_config
from pal.reward.tools.older import let_older_versions_read
from pal.train.heads.linear import LinearHead

PAD = "<|pad|>"
FOLD_TOLERANCE = 1e-2
"""of the spread of the golden scores; the cache's rounding of features is not repeated inside a
merged model"""


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
    save_tokenizer(folder, model)
    write_config(folder, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    let_older_versions_read(folder)
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
    given = base.config.to_dict()
    named = ("id2label", "label2id")  # two of them, where nobody said how many
    one = {key: value for key, value in given.items() if key not in named} | {"num_labels": 1}
    config = type(base.config).from_dict(one)
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
