"""Exports as transformers models.

``pal export --merge`` folds a linear head into the encoder (merge.py): plain transformers loads the
folder. Without it, importing this module teaches transformers the type ``pal``, and
``AutoModelForSequenceClassification.from_pretrained`` gives a ``PalForSequenceClassification``: the
encoder by reference, the head from the folder, no remote code. Heads that read the prompt apart
(``pal-b``) have no place in either, for a sequence classifier sees one sequence.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from pal.embed.encoders.text import TextEncoder
from pal.embed.storage import from_stored, to_stored
from pal.errors import RewardError
from pal.files import atomic_directory
from pal.reward.export_record import CONFIG, Contents, ExportRecord, Modality, read_contents
from pal.reward.loading import folder_of, load_encoder
from pal.reward.model import RewardModel
from pal.reward.tools.chat_template import template_of
from pal.reward.tools.whole_text import WholeTexts
from pal.reward.users import everybody, rewards_of
from pal.train.heads.head import Head

ELSEWHERE = "export without --merge and load PalForSequenceClassification of pal.reward.tools.hf"


class PalConfig(PretrainedConfig):
    """``config.json`` of an export; its block ``pal`` names the record, which has all the rest."""

    model_type = "pal"

    def __init__(self, pal: dict[str, Any] | None = None, **settings: Any) -> None:
        self.pal = pal or {}
        super().__init__(**settings)


class PalForSequenceClassification(PreTrainedModel):
    """``logits`` (B, 1) are the rewards of whole sequences, for whoever the export was made for.

    They are those of ``RewardModel`` for a chat that the export's own tokenizer has written with
    its chat template. A trainer may leave out the special tokens of a text, or send an empty one:
    what the encoder was trained with is put back, and what is longer than it reads loses its start.
    """

    config_class = PalConfig
    base_model_prefix = "model"

    def __init__(self, config: PalConfig, encoder: TextEncoder, contents: Contents) -> None:
        super().__init__(config)
        self.encoder = encoder
        self.model = encoder.model
        self.head = contents.head.to(encoder.device)
        vector = contents.user_vector
        if contents.metadata.choice == "population":
            vector = everybody(contents.head)
        self.register_buffer("user_vector", vector.to(encoder.device))
        self.user_vector: Tensor
        self.whole = WholeTexts(encoder.renderer)
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
        config._name_or_path = str(folder)  # where trainers look for the tokenizer
        return cls(config, live.encoder, contents).eval()

    def save_pretrained(self, save_directory: str | Path, *_: Any, **__: Any) -> None:
        """Write the export as it was loaded into another folder.

        Raises RewardError if the head has been trained since, of which an export knows nothing.
        """
        source, target = Path(self.config._name_or_path), Path(save_directory)
        contents = read_contents(source)
        now = self.head.state_dict()
        before = contents.head.state_dict()
        if any(not torch.equal(value, now[name].cpu()) for name, value in before.items()):
            raise RewardError(
                "this model was trained after it had been exported, and its file cannot hold that; "
                "train with pal train, then pal export"
            )
        if target.exists() and target.samefile(source):
            return
        ExportRecord.require_replaceable(target)
        with atomic_directory(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Score token ids, (B, length), padded on whichever side."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.encoder.device = self.user_vector.device  # a trainer moves modules as it likes
        ids, kept = self.whole(input_ids, mask.bool())
        dtype = self.encoder.config.store_dtype
        vectors = self.user_vector.expand(len(ids), -1)
        # a trainer's mixed precision is for its policy: here it would change the rewards
        with torch.autocast(vectors.device.type, enabled=False):
            feature = from_stored(to_stored(self.encoder.features_of(ids, kept)[0], dtype), dtype)
            rewards = rewards_of(self.head, None, feature.to(vectors.device).float(), vectors)
        return SequenceClassifierOutput(logits=rewards.unsqueeze(1))


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
        renderer = model.encoder.encoder.renderer
        tokenizer = renderer.tokenizer
        if tokenizer.pad_token_id is None:  # padding is masked, so any token does
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        save_tokenizer(folder, model)
        settings["pad_token_id"] = tokenizer.pad_token_id
        if not model.head.uses_prompt:
            settings["architectures"] = [PalForSequenceClassification.__name__]
    write_config(folder, settings)


def save_tokenizer(folder: Path, model: RewardModel) -> None:
    """Write the tokenizer, with a chat template that writes what the encoder was trained on."""
    renderer = model.encoder.encoder.renderer
    own = renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = template_of(renderer, model.metadata)
    try:
        renderer.tokenizer.save_pretrained(folder)
    finally:
        renderer.tokenizer.chat_template = own


def write_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``config.json`` of an export, with the block that names its record."""
    block = {"format": ExportRecord.version, "export": ExportRecord.file}
    text = json.dumps({**settings, "pal": block}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


AutoConfig.register("pal", PalConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PalConfig, PalForSequenceClassification, exist_ok=True)

__all__ = ["PalConfig", "PalForSequenceClassification"]
