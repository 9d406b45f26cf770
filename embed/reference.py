"""Features by the libraries alone, one item at a time: what the self-test compares a cache with.

Rendering, pooling and padding of the encoders are not used here, so that a fault in them shows.
What is shared is where the files are, and how a text is cut that is too long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pal.embed.chat import CLOCK, STOPPED_CLOCK
from pal.embed.encoder import EncoderSource
from pal.embed.encoders.mixed import weight_dtype
from pal.embed.encoders.padding import difference, tolerance
from pal.embed.encoders.pretrained import files_of
from pal.embed.encoders.taps import blocks_of
from pal.embed.images import ImageReader, decode_filtered
from pal.embed.render import Renderer
from pal.embed.trust import loading, loading_options, read_json
from pal.items import Feature, Image, Item, Text

Reference = Callable[[Item], torch.Tensor]
"""an item to its feature, (dim,) float32 on the CPU; of towers without the zeros that fill up the
narrower"""


def reference_of(source: EncoderSource, device: str) -> Reference:
    """Load what gives an encoder's features by its library alone."""
    kind = source.config.kind
    if kind == "identity":
        return _of_feature
    if kind == "hf-text":
        return TextReference(source, device)
    return _open_clip(source, device) if kind == "open-clip" else _hf_towers(source, device)


def _of_feature(item: Item) -> torch.Tensor:
    assert isinstance(item, Feature)
    return torch.from_numpy(np.frombuffer(item.raw, np.float32).copy())


class TextReference:
    """A text model and its tokenizer as transformers has them."""

    def __init__(self, source: EncoderSource, device: str, classifier: bool = False) -> None:
        """``classifier``: with the score head of a reward model, for ``logits``."""
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

        self.config, self.device = source.config, device
        options = loading_options(source)
        if self.config.gguf_file is not None:
            options["gguf_file"] = self.config.gguf_file
        auto: Any = AutoModelForSequenceClassification if classifier else AutoModel
        dtype = weight_dtype(self.config.compute_dtype)
        with files_of(source) as folder, loading(source):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = auto.from_pretrained(folder, dtype=dtype, **options).eval()
            self.dense = [_matrix(folder / d.folder, d.activation) for d in source.dense]
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device)
        self.renderer = Renderer(source.name, self.tokenizer, self.config)

    def __call__(self, item: Item, copies: int = 1) -> torch.Tensor:
        """Return an item's feature, computed in a batch of so many copies of it."""
        ids = self.ids(item)
        states = self._states(torch.tensor([ids] * copies, device=self.device))[0].float()
        pooled = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}
        feature = pooled[self.config.pooling].cpu()
        for weight, bias, activation in self.dense:
            feature = activation(weight @ feature + bias)
        return feature / feature.norm() if self.config.normalize else feature

    def tolerance(self, item: Item) -> float:
        """Return how far features may be apart by rounding; ``item`` shows what another size of the
        batch does."""
        noise = difference(self(item, copies=3)[None], self(item)[None])
        blocks = getattr(self.model.config, "num_hidden_layers", 1)
        return tolerance(self.config.compute_dtype, blocks, noise)

    def logits(self, item: Item) -> torch.Tensor:
        """Return what the model's own score head says, (labels,)."""
        ids = torch.tensor([self.ids(item)], device=self.device)
        found: torch.Tensor = self.model(ids).logits[0].float().cpu()
        return found

    def ids(self, item: Item) -> list[int]:
        """Return the tokens of a text in its turns."""
        assert isinstance(item, Text)
        if self.config.template == "chat":
            template = self.tokenizer.get_chat_template()
            messages = [{"role": turn.role, "content": turn.content} for turn in item.turns]
            words = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                chat_template=STOPPED_CLOCK + template if CLOCK in template else None,
            )
            ids: list[int] = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        else:
            words = item.text
            if item.context:
                pattern = self.config.template or "{context}\n\n{text}"
                before = "\n\n".join(turn.content for turn in item.context)
                words = pattern.replace("{text}", "").replace("{context}", before) + item.text
            ids = self.tokenizer((self.config.instruction or "") + words)["input_ids"]
        if len(ids) <= self.config.max_length:
            return ids
        found, _, _ = self.renderer.tokenise([self.renderer.render(item)])
        cut: list[int] = found.ids.tolist()
        return cut

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the states of the wanted layer, (copies, length, dim)."""
        layer = self.config.layer
        if layer == -1 and self.config.norm != "pre":
            last: torch.Tensor = self.model(ids).last_hidden_state
            return last
        first: list[Any] = []  # what the first and the last block give out
        final: list[Any] = []
        blocks = blocks_of(self.model)
        handles = [
            block.register_forward_hook(lambda module, given, output, to=to: to.append(output))
            for block, to in ((blocks[0], first), (blocks[-1], final))
        ]
        states = self.model(ids, output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        if layer == -1:
            return _of_block(final[0])
        # the list of some (Mamba) begins behind the first block and not before it
        is_behind = bool(first) and torch.equal(_of_block(first[0]), states[0])
        found: torch.Tensor = states[layer - is_behind]
        return found


def _of_block(output: Any) -> torch.Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple | list) else output)


def _matrix(folder: Path, activation: str) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return a layer of sentence-transformers as weight, bias and function."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    weight = tensors["linear.weight"].float()
    settings = read_json(folder / "config.json")
    bias = tensors["linear.bias"].float() if settings.get("bias", True) else 0 * weight[:, 0]
    return weight, bias, getattr(torch.nn, activation)()


def _hf_towers(source: EncoderSource, device: str) -> Reference:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    options, config = loading_options(source), source.config
    dtype = getattr(torch, config.compute_dtype)
    with files_of(source) as folder, loading(source):
        model = AutoModel.from_pretrained(folder, dtype=dtype, **options).eval().to(device)
        processor = AutoImageProcessor.from_pretrained(folder, **options)
        tokenizer = (
            AutoTokenizer.from_pretrained(folder, **options) if config.kind == "hf-clip" else None
        )

    def image(picture: Any) -> torch.Tensor:
        read = processor(images=picture.convert("RGB"), return_tensors="pt")
        pixels = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device)
                  for k, v in read.items()}  # fmt: skip
        if config.kind == "hf-clip":
            if config.layer == -2:
                return _pooled(model.vision_model(**pixels))
            return _pooled(model.get_image_features(**pixels))
        output = model(**pixels, output_hidden_states=True)
        own = getattr(output, "pooler_output", None)
        if config.layer == -1 and config.pooling == "auto" and own is not None:
            return torch.as_tensor(own).flatten()
        states = output.last_hidden_state if config.layer == -1 else (
            output.hidden_states[config.layer]
        )  # fmt: skip
        if config.pooling != "mean":
            return torch.as_tensor(states[0, 0])
        registers = getattr(model.config, "num_register_tokens", 0) or 0
        return torch.as_tensor(states[0, 1 + registers :].float().mean(dim=0))

    def text(words: str) -> torch.Tensor:
        assert tokenizer is not None
        length = model.config.text_config.max_position_embeddings
        ids = tokenizer([words], padding="max_length", truncation=True, max_length=length,
                        return_tensors="pt")["input_ids"].to(device)  # fmt: skip
        if config.layer == -2:
            return _pooled(model.text_model(input_ids=ids))
        return _pooled(model.get_text_features(input_ids=ids))

    return _of_both(source, image, text)


def _pooled(output: Any) -> torch.Tensor:
    return torch.as_tensor(getattr(output, "pooler_output", output))[0]


def _open_clip(source: EncoderSource, device: str) -> Reference:
    from pal.embed.encoders.openclip import build

    model, transform, tokenizer = build(source)
    dtype = getattr(torch, source.config.compute_dtype)
    model = model.to(device=device, dtype=dtype)
    if source.config.layer == -2:
        text_tower = model if hasattr(model, "text_projection") else model.text
        model.visual.proj, text_tower.text_projection = None, None

    def image(picture: Any) -> torch.Tensor:
        return torch.as_tensor(model.encode_image(transform(picture)[None].to(device, dtype)))[0]

    def text(words: str) -> torch.Tensor:
        return torch.as_tensor(model.encode_text(tokenizer([words]).to(device)))[0]

    return _of_both(source, image, text)


def _of_both(
    source: EncoderSource,
    image: Callable[[Any], torch.Tensor],
    text: Callable[[str], torch.Tensor],
) -> Reference:
    reader = ImageReader()

    def of(item: Item) -> torch.Tensor:
        if isinstance(item, Image):
            raw = reader.bytes_of(item.place)
            feature = image(decode_filtered(raw, item.place, source.config.images))
        else:
            assert isinstance(item, Text)
            feature = text("\n\n".join(turn.content for turn in item.turns))
        feature = feature.float().cpu()
        return feature / feature.norm() if source.config.normalize else feature

    return of
