"""PRISM: people from many countries talk to several models at once, score the answers and choose
one to go on with.

Each turn holds the person's message and two to four answers with scores; a comparison is read
behind the earlier turns with the answers chosen there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pal.config import ComparisonsConfig
from pal.data.adapter import Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject, preferred
from pal.data.rows import RowAdapter, number_of
from pal.errors import DataError, shown
from pal.items import Conversation, Text, Turn
from pal.rows import Row
from pal.users import UserError, user_name

Answer = dict[str, Any]


class PrismConfig(ComparisonsConfig):
    """PRISM: conversations in which people score the answers of several models."""

    rule: Literal["chosen", "scores"] = "chosen"
    """chosen: at each turn the chosen answer against each other one; scores: all pairs of answers
    of a turn by their scores, equal scores being a tie."""


class Prism(RowAdapter):
    """Reads conversations where there are any, else utterances, which hold the same answers one by
    one."""

    name = "prism"
    Settings = PrismConfig
    hub = "HannahRoseKirk/prism-alignment"
    patterns = (
        "conversations*.jsonl",
        "conversations*.parquet",
        "utterances*.jsonl",
        "utterances*.parquet",
    )
    licence = "CC BY 4.0 (what people wrote), CC BY-NC 4.0 (what models wrote)"
    user_column = "user_id"
    config: PrismConfig

    def __init__(self, config: PrismConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        conversations = [file for file in self.files if "conversations" in self.name_of(file)]
        self.by_utterance = not conversations
        self.files = conversations or [
            file for file in self.files if "utterances" in self.name_of(file)
        ]
        if not self.files:
            raise DataError(
                f"{config.source} is neither conversations nor utterances; keep the published "
                "file names"
            )

    def parts(self) -> Sequence[Part]:
        """Return a part per file; utterances of one conversation may lie in several files, so they
        are one part."""
        return [self._read_utterances] if self.by_utterance else super().parts()

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        history = row.get("conversation_history")
        if not isinstance(history, list) or not all(isinstance(one, dict) for one in history):
            yield Reject(place, "malformed", "conversation_history is not a list of objects")
            return
        said = [one.get("content") for one in history if one.get("role") == "user"]
        if not all(content is None or isinstance(content, str) for content in said):
            yield Reject(place, "malformed", "what the person said is not all text")
            return
        yield from self._conversation(user_name(row.get("user_id")), _turns(history), place)

    def _read_utterances(self) -> Chunk:
        recorder = Recorder(self.config.views)
        conversations: dict[tuple[str, str | None], list[tuple[str, Row]]] = defaultdict(list)
        rows = (found for file in self.files for found in self.rows(file))
        for number, (place, row) in enumerate(rows):
            if self.config.limit is not None and number >= self.config.limit:
                break
            if isinstance(row, Reject):
                recorder.add(row)
            elif not isinstance(row.get("user_prompt"), str) or not _is_turn(row.get("turn")):
                recorder.add(Reject(place, "malformed", "user_prompt or turn is missing"))
            else:
                try:
                    user = user_name(row.get("user_id"))
                except UserError as problem:
                    recorder.add(Reject.of(place, problem))
                    continue
                conversations[shown(row.get("conversation_id"), 200), user].append((place, row))
        for (_, user), utterances in conversations.items():
            turns: dict[int, tuple[str, list[Answer]]] = {}
            for _, row in utterances:
                answer = {**row, "content": row.get("model_response")}
                turns.setdefault(row["turn"], (row["user_prompt"], []))[1].append(answer)
            place = min(place for place, _ in utterances)
            for found in self._conversation(user, [turns[turn] for turn in sorted(turns)], place):
                recorder.add(found)
        return recorder.chunk()

    def _conversation(
        self, user: str | None, turns: list[tuple[str, list[Answer]]], place: str
    ) -> Iterator[Comparison | Reject]:
        context: Conversation = ()
        if not turns:
            yield Reject(place, "no-turns", "the conversation has no turn")
        for number, (message, answers) in enumerate(turns):
            where = f"{place}#{number}"
            if not message.strip():
                yield Reject(
                    where, "no-prompt", "the person's message is empty, and later turns follow it"
                )
                return
            answers = [answer for answer in answers if isinstance(answer.get("content"), str)]
            chosen = [answer for answer in answers if answer.get("if_chosen") is True]
            prompt = (*context, Turn("user", message))
            yield from self._turn(user, prompt, answers, chosen, where)
            if len(chosen) != 1:
                if number + 1 < len(turns):
                    yield Reject(
                        where,
                        "no-context",
                        "no single answer is chosen, so later turns have no context",
                    )
                return
            context = (*prompt, Turn("assistant", chosen[0]["content"]))

    def _turn(
        self,
        user: str | None,
        prompt: Conversation,
        answers: list[Answer],
        chosen: list[Answer],
        place: str,
    ) -> Iterator[Comparison | Reject]:
        if len(answers) < 2:
            yield Reject(
                place, "one-answer", f"the turn has {len(answers)} answers, so nothing is compared"
            )
        elif self.config.rule == "scores":
            yield from self._by_scores(user, prompt, answers, place)
        elif len(chosen) != 1:
            yield Reject(
                place, "no-choice", f"{len(chosen)} answers of the turn are chosen, not one"
            )
        else:
            best = chosen[0]
            for other in answers:
                if other is not best:
                    items = (Text(best["content"]), Text(other["content"]))
                    yield preferred(place, user, prompt, *items, self.config.salt)

    def _by_scores(
        self, user: str | None, prompt: Conversation, answers: list[Answer], place: str
    ) -> Iterator[Comparison | Reject]:
        for one, other in combinations(answers, 2):
            scores = [number_of(answer.get("score")) for answer in (one, other)]
            if scores[0] is None or scores[1] is None:
                yield Reject(place, "no-score", "an answer has no score")
                continue
            if scores[0] < scores[1]:
                one, other = other, one
            if scores[0] == scores[1]:
                first, second = sorted(
                    (Text(one["content"]), Text(other["content"])), key=lambda item: item.id
                )
                yield Comparison(place, user, prompt, first, second, 0.5)
            else:
                yield preferred(
                    place,
                    user,
                    prompt,
                    Text(one["content"]),
                    Text(other["content"]),
                    self.config.salt,
                )


def _is_turn(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _turns(history: list[Answer]) -> list[tuple[str, list[Answer]]]:
    """Return message and answers of each turn, in order; a turn without message has an empty
    one."""
    turns: dict[int, tuple[list[str], list[Answer]]] = {}
    for one in history:
        if _is_turn(one.get("turn")):
            messages, answers = turns.setdefault(one["turn"], ([], []))
            if one.get("role") == "user":
                messages.append(str(one.get("content") or ""))
            else:
                answers.append(one)
    return [("\n".join(messages), answers) for _, (messages, answers) in sorted(turns.items())]
