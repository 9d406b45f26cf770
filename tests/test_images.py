"""Images: towers equal their libraries, places lead to bytes, what is broken has a reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pil

from pal.cache.reader import FeatureStore
from pal.config import Config, DatasetConfig
from pal.data.adapter import Adapter, Part
from pal.data.build import prepare
from pal.data.comparisons import Chunk, Comparison, Recorder
from pal.dataset import SPLITS, PreparedDataset
from pal.embed.encoder import load, locate
from pal.embed.encoders import hfclip, openclip
from pal.embed.images import ImageReader, decode_filtered
from pal.embed.run import embed
from pal.embed.selftest import self_test
from pal.errors import EncoderError
from pal.items import Image, Place, Text, image_content_id, item_id, question

Configure = Callable[..., Config]
MODES = ("RGB", "RGBA", "L", "P", "CMYK", "1")
KINDS = {
    "openclip": {"embed.tiny.kind": "open-clip", "embed.tiny.model": "random:open-clip"},
    "clip": {"embed.tiny.kind": "hf-clip", "embed.tiny.model": "random:clip"},
    "siglip": {"embed.tiny.kind": "hf-clip", "embed.tiny.model": "random:siglip"},
    "siglip2": {"embed.tiny.kind": "hf-clip", "embed.tiny.model": "random:siglip2"},
}
PROMPTS = ["a cat on a chair", "ünïcode 猫", "many words " * 60]


def picture(number: int) -> bytes:
    """Return an encoded image; mode, size and format change with the number."""
    chance = np.random.default_rng(number)
    size = tuple(chance.integers(8, 120, 2).tolist())
    noise = chance.integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Pil.fromarray(noise).convert(MODES[number % len(MODES)])
    out = io.BytesIO()
    format = ("PNG", "JPEG", "WEBP")[number % 3]
    if format == "JPEG" and image.mode not in {"RGB", "L", "CMYK"}:
        image = image.convert("RGB")
    if format == "WEBP" and image.mode not in {"RGB", "RGBA"}:
        image = image.convert("RGB")
    if format == "PNG" and image.mode == "CMYK":
        image = image.convert("RGB")
    image.save(out, format)
    return out.getvalue()


class Pictures(Adapter):
    """Images in a Parquet file and in single files, under prompts, as Pick-a-Pic has them."""

    licence, origin = "none", "made here"

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        half = len(images) // 2
        rows = pa.table({"jpg_0": pa.array(images[:half], pa.binary())})
        pq.write_table(rows, folder / "images.parquet", row_group_size=7)
        self.images = []
        for number, raw in enumerate(images):
            place = Place(str(folder / "images.parquet"), "jpg_0", number // 7, number % 7)
            if number >= half:
                file = folder / f"{number}.img"
                file.write_bytes(raw)
                place = Place(str(file))
            self.images.append(Image(place, image_content_id(raw if raw else b"#%d" % number)))
        self.ids = [image.id for image in self.images]

    def inputs(self) -> dict[str, str]:
        return {}

    def parts(self) -> list[Part]:
        return [self.read]

    def read(self) -> Chunk:
        recorder = Recorder()
        for number, (first, second) in enumerate(pairwise(self.images)):
            prompt = question(PROMPTS[number % 3])
            split = SPLITS[number % 3]
            recorder.add(Comparison(str(number), "u", prompt, first, second, 1.0, split))
        chunk = recorder.chunk()
        return replace(chunk, pairs=chunk.pairs.with_columns(population=pl.lit("seen")))


def dataset_of(images: list[bytes]) -> tuple[PreparedDataset, Pictures]:
    Path("raw").mkdir(exist_ok=True)
    source = Pictures(Path("raw"), images)
    return prepare(
        "pictures", DatasetConfig(), Path("data/pictures"), lambda config: source
    ), source


def reference(kind: str, config: Config) -> Callable[[Any], torch.Tensor]:
    """Return the library's own preprocessing and forward pass for a PIL image or a text."""
    source = locate("tiny", config.encoder_config(), Path(".digests.json"))
    if kind == "openclip":
        model, transform, tokenizer = openclip.build(source)
        return lambda item: (
            model.encode_text(tokenizer([item]))
            if isinstance(item, str)
            else model.encode_image(transform(item)[None])
        )[0]
    model, processor, tokenizer = hfclip.build(source)
    length = model.config.text_config.max_position_embeddings

    def of(item: Any) -> torch.Tensor:
        if isinstance(item, str):
            ids = tokenizer(
                [item],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            return hfclip.pooled(model.get_text_features(input_ids=ids["input_ids"]))[0]
        return hfclip.pooled(
            model.get_image_features(**processor(images=item.convert("RGB"), return_tensors="pt"))
        )[0]

    return of


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_images_and_prompts_become_what_the_library_makes_of_them(
    kind: str, configure: Configure
) -> None:
    images = [picture(number) for number in range(240)]
    dataset, source = dataset_of(images)
    extra = {"encoder": "tiny", "embed.tiny.store_dtype": "float32", "embed.rows_per_shard": 50}
    config = configure({**KINDS[kind], **extra, "embed.token_budget": 400})
    result = embed(config, dataset)
    assert (result.encoded, result.errors, result.untrained) == (243, 0, True)
    store = FeatureStore.open(Path(result.dir))
    features, of = store.features(), reference(kind, config)
    for raw, name in list(zip(images, source.ids, strict=True))[::7]:
        wanted = of(Pil.open(io.BytesIO(raw)))
        torch.testing.assert_close(
            features[store.index(np.array([name]))[0]], wanted, atol=1e-5, rtol=1e-4
        )
    for text in PROMPTS:
        row = store.index(np.array([item_id("text", text)]))[0]
        torch.testing.assert_close(features[row], of(text), atol=1e-5, rtol=1e-4)
    assert self_test(config, dataset).largest_difference < 1e-4
    assert embed(config, dataset).encoded == 0


@pytest.mark.parametrize("kind", ["openclip", "clip"])
def test_the_feature_before_the_projection_leads_to_the_projected_one(
    kind: str, configure: Configure
) -> None:
    dataset, source = dataset_of([picture(number) for number in range(20)])
    before, after = (
        embed(configure({**KINDS[kind], "encoder": "tiny", "embed.tiny.store_dtype": "float32",
                         "embed.tiny.layer": layer}), dataset).dir for layer in (-2, -1)
    )  # fmt: skip
    model = (openclip if kind == "openclip" else hfclip).build(
        locate(
            "tiny",
            configure({**KINDS[kind], "encoder": "tiny"}).encoder_config(),
            Path(".digests.json"),
        )
    )[0]
    weight = model.visual.proj if kind == "openclip" else model.visual_projection.weight.T
    names = np.array(source.ids)
    stores = [FeatureStore.open(Path(folder)) for folder in (before, after)]
    hidden, projected = (store.features()[store.index(names)] for store in stores)
    assert hidden.shape[1] == 96  # the wider tower's; texts have 64 numbers and zeros behind them
    torch.testing.assert_close(hidden @ weight.detach(), projected, atol=1e-5, rtol=1e-4)
    text = stores[0].index(np.array([item_id("text", PROMPTS[0])]))[0]
    assert not stores[0].features()[text, 64:].any()


def test_broken_images_are_rows_of_the_errors_table_and_can_be_tried_again(
    configure: Configure,
) -> None:
    images = [picture(number) for number in range(40)]
    bomb = io.BytesIO()
    Pil.new("1", (20_000, 20_000)).save(bomb, "PNG")
    images[30], images[31], images[32] = b"", picture(1)[:200], bomb.getvalue()
    images[3] = b"no image at all"
    dataset, source = dataset_of(images)
    gone = Path("raw/33.img")
    content = gone.read_bytes()
    gone.unlink()
    config = configure({**KINDS["openclip"], "encoder": "tiny", "embed.max_error_rate": 0.5})
    result = embed(config, dataset)
    assert (result.encoded, result.errors) == (38, 5)
    errors = pl.read_parquet(Path(result.dir) / "errors" / "*.parquet")
    names = source.ids
    found = {
        names.index(row["item_id"]): (row["stage"], row["error_class"]) for row in errors.to_dicts()
    }
    assert found == {
        3: ("decode", "UnidentifiedImageError"),
        30: ("decode", "ValueError"),
        31: ("decode", "OSError"),
        32: ("decode", "DecompressionBombError"),
        33: ("fetch", "FileNotFoundError"),
    }
    assert set(errors["attempts"]) == {1}
    gone.write_bytes(content)
    assert embed(config, dataset).encoded == 0
    again = embed(config, dataset, retry_errors=True)
    assert (again.errors, again.encoded) == (4, 39)
    assert set(pl.read_parquet(Path(result.dir) / "errors" / "*.parquet")["attempts"]) == {2}


def test_an_image_in_memory_is_read_as_one_in_a_file() -> None:
    Path("one.img").write_bytes(picture(4))
    reader = ImageReader()
    in_memory, in_file = Image.of_bytes(picture(4)), Place("one.img")
    assert reader.bytes_of(in_memory.place) == reader.bytes_of(in_file) == picture(4)
    warm = replace(in_memory.place, filter="warm-0.3")
    assert decode_filtered(picture(4), warm) != decode_filtered(picture(4), in_file)


def test_a_broken_image_in_memory_is_a_failure_of_its_own(configure: Configure) -> None:
    config = configure({**KINDS["openclip"], "encoder": "tiny"})
    source = locate("tiny", config.encoder_config(), Path(".digests.json"))
    made = load(source, "cpu", 400, [-1], False)
    inputs = made.prepare([Image.of_bytes(picture(0)), Image.of_bytes(b"no image"), Text("a cat")])
    batch = made.load_batch(inputs, np.array([0, 1]))
    assert batch.rows.tolist() == [0]
    assert batch.failures[1][:2] == ("decode", "UnidentifiedImageError")
    assert (
        made.encode(batch)[0].shape == made.encode(made.load_batch(inputs, np.array([2])))[0].shape
    )


def test_images_are_read_in_the_order_of_the_source(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pal.embed import images as module

    dataset, _ = dataset_of([picture(number) for number in range(80)])
    groups: list[int] = []
    original = module.read_group

    def watch(file: str, column: str, group: int) -> Any:
        groups.append(group)
        return original(file, column, group)

    monkeypatch.setattr(module, "read_group", watch)
    embed(configure({**KINDS["openclip"], "encoder": "tiny", "embed.workers": 1}), dataset)
    assert groups == sorted(set(groups))  # each row group is read once


def test_what_towers_cannot_do_is_one_sentence(configure: Configure) -> None:
    dataset, _ = dataset_of([picture(number) for number in range(10)])
    for change, sentence in (
        ({"embed.tiny.layer": -3}, r"towers give -1 \(projected\) or -2"),
        ({"embed.tiny.model": "ViT-nothing"}, "is no OpenCLIP model"),
        (
            {"embed.tiny.model": "ViT-B-32", "embed.tiny.pretrained": "none"},
            "ViT-B-32 has openai, laion400m",
        ),
        (
            {
                "embed.tiny.kind": "hf-clip",
                "embed.tiny.model": "random:siglip",
                "embed.tiny.layer": -2,
            },
            "no projection",
        ),
        ({"embed.layers": [-1, -2]}, "gives one layer at a time"),
    ):
        with pytest.raises(EncoderError, match=sentence):
            embed(configure({**KINDS["openclip"], "encoder": "tiny", **change}), dataset)
