"""An item that a library cannot take costs only itself, in stage one and live."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from pal.config import EncoderConfig
from pal.embed import images as images_module
from pal.embed.encoder import Encoder, load, locate
from pal.embed.encoders.identity import IdentityEncoder
from pal.embed.encoders.text import TextEncoder
from pal.embed.odd import Failure, Failures, is_about_items, odd_ones
from pal.embed.storage import to_stored, unstorable
from pal.errors import EncoderError
from pal.items import Feature, Image, Item, Text, Turn
from pal.reward.live import LiveEncoder

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FINE = [Text("some words"), Text("a longer text than the others"), Text("ünïcode 猫 \0 nul")]


class PanicException(BaseException):
    """As libraries written in Rust raise it."""


def encoded(
    made: Encoder, items: Sequence[Item], dtype: str = "float32"
) -> tuple[dict[int, torch.Tensor], Failures]:
    """Return the features by row, and the failures, as a shard has them."""
    inputs = made.prepare(items)
    features, failures = {}, dict(inputs.failures)
    for rows in made.batches(inputs):
        batch = made.load_batch(inputs, rows)
        for done, taps in made.encode_each(inputs, batch, failures):
            odd = unstorable(taps[0], to_stored(taps[0], dtype), dtype)
            failures.update({int(done[place]): why for place, why in odd.items()})
            features.update(zip(done.tolist(), taps[0], strict=True))
    return features, failures


def only(made: Encoder, fine: Sequence[Item], odd: Item, within: float = 0.0) -> Failure:
    """Return an odd item's failure, once the others have the features that they have without it."""
    without, nothing = encoded(made, fine)
    assert nothing == {}
    with_it, failures = encoded(made, [fine[0], odd, *fine[1:]])
    assert sorted(failures) == [1]
    assert sorted(with_it) == [0, *range(2, len(fine) + 1)]
    for row, feature in with_it.items():
        own = without[row if row == 0 else row - 1]
        torch.testing.assert_close(feature, own, atol=within, rtol=within)
    failure = failures[1]
    assert failure.message
    failure.message.encode()  # what a table can store
    return failure


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = EncoderConfig(model="random:bert", store_dtype="float32", max_length=64)
    return locate("tiny", config, None)


@pytest.fixture
def texts(source: Any) -> TextEncoder:
    made = load(source, "cpu", 200, [-1], False)
    assert isinstance(made, TextEncoder)
    return made


def with_template(made: TextEncoder, template: str) -> TextEncoder:
    made.renderer.tokenizer.chat_template = template
    made.renderer.is_chat = True
    return made


@pytest.mark.parametrize(
    "expression",
    [
        "raise_exception('not that')",
        "1 / 0",
        "nothing.at.all",
        "'x' + 1",
        "2.0 ** 5000",
        "messages[9]['content']",
        "cycler.__init__.__globals__",
        "strftime_now()['x']()",
    ],
)
def test_what_a_chat_template_raises_is_a_failure(texts: TextEncoder, expression: str) -> None:
    odd = "{% if 'odd' in messages[-1]['content'] %}{{ " + expression + " }}{% endif %}"
    failure = only(with_template(texts, odd + CHAT), FINE, Text("odd", (Turn("tool", "?"),)))
    assert failure[:2] == ("tokenize", "RefusedByTemplate")
    assert failure.message.startswith("the chat template does not accept the roles tool, assistant")


@pytest.mark.parametrize("error", [PanicException, RuntimeError, MemoryError, OverflowError])
def test_what_a_tokenizer_raises_for_a_batch_is_one_texts_failure(
    texts: TextEncoder, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = texts.renderer.tokenizer

    def raising(given: Any, **options: Any) -> Any:
        if any("odd" in text for text in ([given] if isinstance(given, str) else given)):
            raise error("half a pair \ud800")
        return tokenizer(given, **options)

    raising.is_fast = True  # type: ignore[attr-defined]
    monkeypatch.setattr(texts.renderer, "tokenizer", raising)
    failure = only(texts, FINE, Text("an odd one"))
    assert failure == ("tokenize", error.__name__, "half a pair \\ud800")


def test_a_tokenizer_that_reads_nothing_is_a_sentence_about_the_encoder(
    texts: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no vocabulary")

    monkeypatch.setattr(texts.renderer, "tokenizer", raising)
    with pytest.raises(EncoderError, match=r"can read no item, not even '-' \(RuntimeError: no vo"):
        texts.prepare(FINE)


@pytest.mark.parametrize("error", [PanicException, RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("step", ["stack", "encode"])
def test_a_row_that_cannot_be_stacked_or_encoded_is_its_own_failure(
    texts: TextEncoder, step: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = texts.renderer.tokenizer("an odd one")["input_ids"]
    original = getattr(texts, step)

    def raising(*given: Any) -> Any:
        ids = original(*given).tensors[0] if step == "stack" else given[0].tensors[0]
        if any(row[: len(odd)].tolist() == odd for row in ids):
            raise error("not this one")
        return original(*given)

    monkeypatch.setattr(texts, step, raising)
    within = 1e-5 if error is torch.OutOfMemoryError else 0.0  # other batches round otherwise
    failure = only(texts, FINE, Text("an odd one"), within)
    stage = "decode" if step == "stack" else "encode"
    assert failure == (stage, error.__name__, "not this one")


@pytest.mark.parametrize(
    ("odd", "stage"),
    [
        (Text("half \ud800"), "decode"),
        (Text("fine", (Turn("half \udfff", "?"),)), "decode"),
        (Text(" \t\n\u2003"), "tokenize"),
        (Text(""), "tokenize"),
    ],
)
def test_texts_that_cannot_be_read_are_failures(texts: TextEncoder, odd: Text, stage: str) -> None:
    assert only(texts, FINE, odd).stage == stage


def test_a_role_that_nobody_knows_is_read(texts: TextEncoder) -> None:
    odd = Text("fine", (Turn("\0 grand vizier", "?"),))
    features, failures = encoded(with_template(texts, CHAT), [odd, *FINE])
    assert (len(features), failures) == (4, {})


def test_who_wants_to_stop_is_not_an_odd_item(texts: TextEncoder) -> None:
    for error in (KeyboardInterrupt(), SystemExit(), EncoderError("a sentence")):
        assert not is_about_items(error)

        def stop(rows: Sequence[int], error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            odd_ones([0, 1], stop, "decode")


def test_odd_ones_are_found_by_halving() -> None:
    asked: list[int] = []

    def call(rows: Sequence[int]) -> None:
        asked.append(len(rows))
        if {5, 700} & set(rows):
            raise ValueError("odd")

    assert sorted(odd_ones(range(1024), call, "decode")) == [5, 700]
    assert len(asked) < 45


@pytest.mark.parametrize("size", [0, 3, 12, 4000])
def test_a_feature_of_another_length_is_a_failure(size: int) -> None:
    fine = [Feature(np.full(4, n, np.float32).tobytes()) for n in (1, 2, 3)]
    failure = only(IdentityEncoder(), fine, Feature(bytes(size)))
    assert failure[:2] == ("decode", "WrongLength")
    assert failure.message.startswith(f"the feature has {size} bytes, but")


def test_the_length_of_features_is_that_of_the_first_shard() -> None:
    made = IdentityEncoder()
    encoded(made, [Feature(bytes(16))] * 3)
    features, failures = encoded(made, [Feature(bytes(12))] * 2 + [Feature(bytes(16))])
    assert (list(features), sorted(failures)) == ([2], [0, 1])
    with pytest.raises(EncoderError, match="none of the features is a float32 vector"):
        IdentityEncoder().prepare([Feature(b"abc")])


# --- images ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def towers() -> Encoder:
    config = EncoderConfig(kind="hf-clip", model="random:clip", store_dtype="float32")
    return load(locate("tiny", config, None), "cpu", 400, [-1], False)


def saved(image: Any, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
PLAIN = Pil.fromarray(NOISE)
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
0 0 10 10 rectfill
showpage
"""


def rotated() -> bytes:
    exif = Pil.Exif()
    exif[0x0112] = 6
    return saved(PLAIN, "JPEG", exif=exif)


SOUND: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: saved(PLAIN.convert("CMYK"), "JPEG"),
    "palette with transparency": lambda: saved(PLAIN.quantize(8), "PNG", transparency=3),
    "grey and alpha": lambda: saved(PLAIN.convert("LA"), "PNG"),
    "one pixel": lambda: saved(PLAIN.crop((0, 0, 1, 1)), "PNG"),
    "a line": lambda: saved(PLAIN.resize((500, 1)), "BMP"),
    "rotated by exif": rotated,
    "gif of 200 frames": lambda: saved(
        PLAIN.convert("P"), "GIF", save_all=True, append_images=[Pil.new("P", (60, 40))] * 199
    ),
    "tiff of frames": lambda: saved(PLAIN, "TIFF", save_all=True, append_images=[PLAIN] * 9),
    "webp": lambda: saved(PLAIN, "WEBP"),
    "16 bits": lambda: saved(Pil.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
}
ODD: dict[str, Callable[[], bytes]] = {
    "eps": lambda: EPS,
    "psd": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + bytes(200),
    "ppm": lambda: saved(PLAIN, "PPM"),
    "truncated": lambda: saved(PLAIN, "PNG")[:700],
    "empty": lambda: b"",
    "no image": lambda: b"GIF89a",
    "floats without a white": lambda: saved(
        Pil.fromarray(NOISE[..., 0].astype(np.float32) - 9), "TIFF"
    ),
    "bomb": lambda: saved(Pil.new("1", (20_000, 20_000)), "PNG"),
    "too large": lambda: saved(Pil.new("1", (12_000, 9_000)), "PNG"),
}
FINE_IMAGES = [Image.of_bytes(saved(PLAIN.rotate(n), "PNG")) for n in (0, 10, 20)]


@pytest.mark.parametrize("name", SOUND)
def test_unusual_images_are_read(towers: Encoder, name: str) -> None:
    features, failures = encoded(towers, [Image.of_bytes(SOUND[name]()), *FINE_IMAGES])
    assert (sorted(features), failures) == ([0, 1, 2, 3], {})


GREY = NOISE[..., 0]
DEEP = {
    "16 bits": (Pil.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "floats to 1": (Pil.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
    "floats to 255": (Pil.fromarray(GREY.astype(np.float32)), "TIFF"),
    "floats to 65535": (Pil.fromarray(GREY.astype(np.float32) * 257), "TIFF"),
    "32 bits": (Pil.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
}


@pytest.mark.parametrize("name", DEEP)
def test_grey_of_more_than_eight_bits_is_scaled(towers: Encoder, name: str) -> None:
    deep, format = DEEP[name]
    items = [saved(deep, format), saved(Pil.fromarray(GREY), "PNG"), saved(PLAIN, "PNG")]
    features, _ = encoded(towers, [Image.of_bytes(raw) for raw in items])
    torch.testing.assert_close(features[0], features[1])
    assert not torch.allclose(features[0], features[2])


def test_colours_are_those_of_the_profile_that_an_image_brings() -> None:
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # no colours of a screen's
    screen = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    plain = images_module.decode(saved(PLAIN, "PNG"))
    srgb = images_module.decode(saved(PLAIN, "PNG", icc_profile=screen.tobytes()))
    damaged = images_module.decode(saved(PLAIN, "PNG", icc_profile=b"no profile"))
    assert srgb.tobytes() == damaged.tobytes() == plain.tobytes()
    assert images_module.decode(saved(PLAIN, "PNG", icc_profile=lab.tobytes())).size == plain.size
    wide = images_module.decode(saved(PLAIN, "PNG", icc_profile=wide_profile()))
    assert wide.tobytes() != plain.tobytes()


def wide_profile() -> bytes:
    """Return sRGB's own profile with red and blue exchanged, under another name."""
    from PIL import ImageCms

    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(raw[128:132], "big")
    places = {bytes(raw[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    raw[red : red + 4], raw[blue : blue + 4] = raw[blue : blue + 4], raw[red : red + 4]
    return bytes(raw).replace(b"sRGB", b"wide").replace("sRGB".encode("utf-16-be"),
                                                        "wide".encode("utf-16-be"))  # fmt: skip


def test_as_the_library_reads_an_image_nothing_but_its_mode_is_changed() -> None:
    see_through = Pil.fromarray(np.dstack([NOISE, NOISE[..., :1] // 2]))
    for raw in (rotated(), saved(see_through, "PNG"), SOUND["palette with transparency"]()):
        wanted = Pil.open(io.BytesIO(raw)).convert("RGB")
        assert images_module.AS["as-library"](raw).tobytes() == wanted.tobytes()
        assert images_module.AS["as-seen"](raw).convert("RGB").tobytes() != wanted.tobytes()
    seen, library = (
        locate("tiny", EncoderConfig(kind="hf-clip", model="random:clip", images=how), None).spec
        for how in ("as-seen", "as-library")
    )
    assert (seen["images"], library["images"]) == (images_module.AS_SEEN, "as-library")


@pytest.mark.parametrize("name", ODD)
def test_other_images_are_failures_and_start_nothing(
    towers: Encoder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*command: Any, **_: Any) -> Any:
        raise AssertionError(f"{command} was started")

    for starter in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, starter, started)
    failure = only(towers, FINE_IMAGES, Image.of_bytes(ODD[name]()))
    assert failure.stage == "decode"
    assert "was started" not in failure.message


def test_the_formats_are_those_that_are_named() -> None:
    assert "EPS" in Pil.OPEN  # Pillow would open it, and start Ghostscript
    with pytest.raises(Pil.UnidentifiedImageError):
        images_module.decode(EPS)
    assert set(images_module.FORMATS) <= {*Pil.OPEN, "AVIF"}


@pytest.mark.parametrize(
    "error",
    [SyntaxError, struct.error, ZeroDivisionError, MemoryError, OverflowError, PanicException],
)
def test_whatever_an_image_library_raises_is_a_failure(
    towers: Encoder, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = images_module.decode

    def raising(raw: bytes) -> Any:
        if raw == b"odd":
            raise error("not this one")
        return original(raw)

    monkeypatch.setitem(images_module.AS, "as-seen", raising)
    failure = only(towers, FINE_IMAGES, Image.of_bytes(b"odd"))
    assert failure == ("decode", error.__name__, "not this one")


# --- live ------------------------------------------------------------------------------------


def test_a_live_encoder_gives_the_reasons_of_stage_one(
    source: Any, texts: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = source.config.model_copy(update={"store_dtype": "float16"})
    live = LiveEncoder(locate("tiny", config, None), "cpu")
    tokenizer, encode = live.encoder.renderer.tokenizer, TextEncoder.encode
    odd_ids = tokenizer("cannot be encoded")["input_ids"]

    def tokenise(given: Any, **options: Any) -> Any:
        if any("panic" in text for text in ([given] if isinstance(given, str) else given)):
            raise PanicException("not that")
        return tokenizer(given, **options)

    def fail(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if any(row[: len(odd_ids)].tolist() == odd_ids for row in batch.tensors[0]):
            raise RuntimeError("cannot encode this")
        out = encode(self, batch)[0].clone()
        out[batch.tensors[1].sum(dim=1) == 6] = torch.nan  # "four" between its marks
        out[batch.tensors[1].sum(dim=1) == 7] = 70_000.0  # "large"
        return [out]

    tokenise.is_fast = True  # type: ignore[attr-defined]
    monkeypatch.setattr(TextEncoder, "encode", fail)
    for made in (live.encoder, texts):
        monkeypatch.setattr(made.renderer, "tokenizer", tokenise)
    odd = [Text("panic"), Text("half \ud800"), Text(" "), Text("cannot be encoded")]
    odd += [Text("four"), Text("large")]
    _, failures = encoded(texts, [*FINE, *odd], "float16")
    assert live.features([*FINE, *odd]).failures == {
        row: failure.message for row, failure in failures.items()
    }
    assert sorted(failures) == [3, 4, 5, 6, 7, 8]
