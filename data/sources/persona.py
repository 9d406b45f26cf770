"""Anthropic's persona statements (Perez et al. 2022, arXiv 2212.09251), CC BY 4.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from pal.config import GroupedStatementsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Reject, rejects_frame
from pal.data.locate import resolve_source
from pal.data.readers import read_rows
from pal.data.sources.statements import ANSWERS, Statement, ask, planted
from pal.dataset import CONCATENATED
from pal.errors import DataError, shown
from pal.files import file_sha256
from pal.items import is_unicode
from pal.rows import BadRow, Row

HUB = "hf:Anthropic/model-written-evals"


class PersonaConfig(GroupedStatementsConfig):
    """Anthropic's persona statements."""

    personas: tuple[str, ...] = (
        "interest-in-art",
        "interest-in-literature",
        "interest-in-math",
        "interest-in-music",
        "interest-in-science",
        "interest-in-sports",
    )
    """Statement files; the first K* of them are used."""


class Persona(Adapter):
    """Reads ``<persona>.jsonl`` from a local folder or from the Hub's ``persona/`` folder.

    A source row needs ``question`` and ``answer_matching_behavior`` (`` Yes`` or `` No``); rows
    without them, and repeated statements, become rejects.
    """

    name = "persona"
    Settings = PersonaConfig
    config: PersonaConfig
    licence = "CC BY 4.0"
    item_text = CONCATENATED
    keeps_unused_items = True

    def __init__(self, config: PersonaConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        key = f"data.{self.dataset}"
        if config.groups > len(config.personas):
            raise DataError(
                f"{key}.groups = {config.groups} needs as many personas, but {key}.personas "
                f"names {len(config.personas)}; add some or lower groups"
            )
        self.files = [f"{name}.jsonl" for name in config.personas[: config.groups]]
        self.folder, self.origin = resolve_source(
            self.dataset, config.source or HUB, allow=[f"persona/{file}" for file in self.files]
        )
        if (self.folder / "persona").is_dir():
            self.folder = self.folder / "persona"
        missing = [file for file in self.files if not (self.folder / file).is_file()]
        if missing:
            raise DataError(
                f"{self.folder} has no {', '.join(missing)}; point {key}.source at the "
                "folder that has"
            )

    def inputs(self) -> dict[str, str]:
        return {file: file_sha256(self.folder / file) for file in self.files}

    def truth(self) -> dict[str, np.ndarray]:
        return planted(self.config)

    def parts(self) -> Sequence[Part]:
        return [self._read]

    def _read(self) -> Chunk:
        statements: dict[str, Statement] = {}
        rejects: list[Reject] = []
        for interest, file in enumerate(self.files):
            for place, row in self._rows(file):
                statement = self._statement(row, interest)
                if isinstance(statement, str):
                    rejects.append(Reject(place, "malformed", statement))
                elif statement.question in statements:
                    rejects.append(Reject(place, "repeated", "statement seen before"))
                else:
                    statements[statement.question] = statement
        chunk = ask(list(statements.values()), self.config)
        chunk.rejects = rejects_frame(rejects)
        return chunk

    def _rows(self, file: str) -> Iterator[tuple[str, Row | BadRow]]:
        rows = islice(read_rows(self.folder / file), self.config.limit)
        for number, row in enumerate(rows, start=1):
            yield f"{file}:{number:06d}", row

    @staticmethod
    def _statement(row: Row | BadRow, interest: int) -> Statement | str:
        if isinstance(row, BadRow):
            return row.reason
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            return "no question"
        if not is_unicode(question):
            return "the question holds half of a surrogate pair"
        answer = row.get("answer_matching_behavior")
        if answer not in ANSWERS:
            return f"answer_matching_behavior is {shown(answer)}, not ' Yes' or ' No'"
        return Statement(question, interest, answer == " Yes")
