"""The bodies of requests: what is no JSON, too deep or made of too many values ends here, before
anything is made of it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from pal.rows import MARK

MOST_VALUES, DEEPEST, MOST_DIGITS = 1 << 18, 32, 400
QUICK_BYTES, QUICK_MARKS = 1 << 16, 512
"""a body of so many bytes, quotes and brackets at most is read by the event loop itself, in less
than a millisecond; a longer one would keep other connections waiting"""
MOST_PROBLEMS, LONGEST_MESSAGE = 8, 200
COLUMNS = {"prompts": "prompt", "responses": "response", "images": "image", "users": "user_id"}
"""what files call the entries of a list"""

_aside = ThreadPoolExecutor(1, "aside")
Result = TypeVar("Result")


class BodyRoute(APIRoute):
    """A route that reads JSON by ``parse``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await answer(_JsonRequest(request.scope, request.receive))

        return read


class _JsonRequest(Request):
    async def json(self) -> Any:
        return await parsed(await self.body())


async def parsed(raw: bytes) -> Any:
    """Return the value of a JSON text, a long one read beside the event loop; raises
    HTTPException."""
    return parse(raw) if _is_quick(raw) else await aside(parse, raw)


def _is_quick(raw: bytes) -> bool:
    return len(raw) <= QUICK_BYTES and sum(map(raw.count, (b'"', b",", b"[", b"{"))) <= QUICK_MARKS


async def aside(call: Callable[..., Result], *values: Any) -> Result:
    """Do what takes long beside the event loop; one after the other, since the interpreter has to
    be shared with it and with the model anyway."""
    return await asyncio.get_running_loop().run_in_executor(_aside, lambda: call(*values))


def parse(raw: bytes) -> Any:
    """Return the value of a JSON text; raises HTTPException.

    Numbers too large for a double are infinite, and of a name given twice the last one counts.
    Halves of surrogate pairs are left to the row that has them.
    """
    _require_modest(raw)
    try:
        return json.loads(raw.decode("utf-8"), parse_int=_whole, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise HTTPException(422, f"the body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise HTTPException(
            422, f"the body is no JSON: {error.msg} at character {error.pos}"
        ) from error


def _require_modest(raw: bytes) -> None:
    """Raise HTTPException for more or deeper values than any request needs."""
    depth = 0
    for number, found in enumerate(MARK.finditer(raw)):
        if number > MOST_VALUES:
            raise HTTPException(413, f"the body has more than {MOST_VALUES:,} values; send fewer")
        first = raw[found.start()]
        if first in b"[{":
            depth += 1
            if depth > DEEPEST:
                raise HTTPException(422, f"the body is nested more than {DEEPEST} levels deep")
        elif first in b"]}":
            depth -= 1


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MOST_DIGITS else math.inf


def _refuse(name: str) -> NoReturn:
    raise HTTPException(422, f"the body is no JSON: {name} is no number there; send null")


def refusal_of(error: RequestValidationError) -> JSONResponse:
    """Return what is wrong with a body, without what was sent: the first problems, each shortly."""
    found = [
        {
            "type": problem["type"],
            "loc": [_short(part) for part in problem["loc"]],
            "msg": _short(problem["msg"]) + _hint(problem),
        }
        for problem in error.errors()[:MOST_PROBLEMS]
    ]
    return JSONResponse({"detail": found}, 422)


def _hint(problem: Mapping[str, Any]) -> str:
    """Return how a missing list is called in files, which have a row for each of its entries."""
    column = COLUMNS.get(problem["loc"][-1]) if problem["type"] == "missing" else None
    return "" if column is None else f": a list, with an entry for each row's {column}"


def _short(part: Any) -> Any:
    if not isinstance(part, str):
        return part
    return part[:LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()
