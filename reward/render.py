"""What is scored, rendered as stage one would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pal.errors import RewardError
from pal.items import Conversation, Item, Prompt, Text, conversation, prompt_item, response_item
from pal.reward.export_record import ExportRecord
from pal.reward.live import image_of


@dataclass(frozen=True)
class Row:
    """One thing to score: the item, and the prompt's own item for heads that read it."""

    item: Item
    prompt: Text | None


@dataclass(frozen=True)
class Readable:
    """What of many rows can be scored, and why the rest cannot."""

    rows: list[Row]
    vectors: Tensor
    """(m, R) of the rows' users"""
    places: list[int]
    """of each row among those that were given"""
    failures: dict[int, str]
    """the reason by place"""


@dataclass(frozen=True)
class RowReader:
    """Renders prompts and items for one head."""

    record: ExportRecord
    head: str
    uses_prompt: bool

    def row(self, prompt: Prompt, item: Any) -> Row:
        """Render one prompt and item as stage one would; raises PalError for what cannot be one."""
        turns = conversation(prompt)
        if self.record.modality == "image":
            return Row(image_of(item), self._prompt_of(turns))
        earlier = conversation(item, "assistant")[:-1]  # they count to the prompt
        response = response_item(turns, item, self.record.view, self.record.item_text)
        return Row(response, self._prompt_of((*turns, *earlier)))

    def _prompt_of(self, turns: Conversation) -> Text | None:
        """Return the prompt's own item for a head that reads it."""
        if not self.uses_prompt:
            return None
        own = prompt_item(turns)
        if own is None:
            raise RewardError(
                f"head {self.head} reads the prompt, but a row has none; give prompts"
            )
        return own
