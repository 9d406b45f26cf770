"""One user has one name, whatever type the id has and whichever file it comes from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pal.users import UserError, user_name, user_names

WHOLE = st.integers(-(10**15), 10**15)
TEXTS = st.text(min_size=1).filter(lambda text: bool(text.strip()))


@given(WHOLE)
def test_a_number_is_one_user_however_it_is_stored(number: int) -> None:
    spellings: list[Any] = [
        number,
        float(number),
        np.int64(number),
        np.float64(number),
        np.array(number),
        np.str_(number),
        str(number),
        str(number).encode(),
        bytearray(str(number).encode()),
        memoryview(str(number).encode()),
    ]
    assert {user_name(spelling) for spelling in spellings} == {str(number)}


@given(st.integers(0, 255))
def test_small_numbers_of_any_width_are_one_user(number: int) -> None:
    widths = [np.uint8, np.uint16, np.int16, np.int32, np.uint64, np.float16, np.float32]
    assert {user_name(width(number)) for width in widths} == {str(number)}


@given(TEXTS)
def test_a_text_is_a_name_as_it_stands(text: str) -> None:
    assert user_name(text) == text
    assert user_name(np.str_(text)) in (text, text.rstrip("\0"))  # which NumPy's texts end at


@given(TEXTS)
def test_utf8_bytes_are_their_text(text: str) -> None:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        return
    assert user_name(raw) == text


@given(st.integers(-(10**30), 10**30))
def test_names_are_names_of_themselves(number: int) -> None:
    name = user_name(number)
    assert user_name(name) == name


@pytest.mark.parametrize(
    "nobody",
    [None, "", "  ", "\t\n", b"", b" ", float("nan"), np.nan, np.float32("nan"), np.float16("nan")],
)
def test_missing_ids_name_nobody(nobody: Any) -> None:
    assert user_name(nobody) is None


@pytest.mark.parametrize(
    "value",
    [True, False, np.True_, 7.5, np.float32(0.5), math.inf, -math.inf, [7], {"id": 7}, (), 10**100,
     b"\xff", object(), 1j],
)  # fmt: skip
def test_what_is_no_id_is_one_sentence(value: Any) -> None:
    with pytest.raises(UserError) as error:
        user_name(value)
    assert "\n" not in str(error.value)


@given(st.lists(WHOLE, min_size=1))
def test_a_column_of_numbers_names_the_same_users_as_typed_numbers(numbers: list[int]) -> None:
    wanted = [str(number) for number in numbers]
    assert user_names([str(number) for number in numbers]) == wanted
    assert user_names([f" {number}.0 " for number in numbers]) == wanted
    assert user_names([*wanted, "", None, "NaN", "null", "None"]) == [*wanted, *[None] * 5]


@given(st.lists(TEXTS))
def test_a_column_with_texts_keeps_them(texts: list[str]) -> None:
    names = user_names(["u0", *texts])
    missing = {"nan", "null", "none"}
    assert names == ["u0", *(None if t.strip().lower() in missing else t for t in texts)]


def test_leading_zeros_make_a_column_of_texts() -> None:
    assert user_names(["007", "7", "7.0"]) == ["007", "7", "7.0"]
