"""What requests bring as rows: read as the model takes it, and measured."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward.adaptation import ItemPairs
from pal.reward.model import RewardModel, Row
from pal.reward.server.batching import bytes_of


@dataclass(frozen=True)
class Reader:
    """Reads rows for one model, within the limits of one server."""

    model: RewardModel
    settings: ServeConfig

    def item_of(self, sent: Any) -> Any:
        """Return a response as the model takes it: an image is bytes, never a path, which would be
        read here."""
        if not self.model.is_image:
            return sent
        try:
            return base64.b64decode(sent, validate=True)
        except (TypeError, ValueError) as error:
            raise RewardError(
                "this model rewards images: send their files' bytes in base64"
            ) from error

    def excess_of(self, row: Row) -> str | None:
        """Return why a row is too large, None where it is not."""
        size = bytes_of(row)
        most, name = self.settings.max_row_bytes, "serve.max_row_bytes"
        if self.model.is_image:
            most, name = self.settings.max_image_bytes, "serve.max_image_bytes"
        return f"it has {size:,} bytes, more than the {most:,} of {name}" if size > most else None

    def row_of(self, prompt: Any, sent: Any) -> Row:
        """Return a row as a request brings it; raises PalError for one that would be refused."""
        row = self.model.row(prompt, self.item_of(sent))
        reason = self.excess_of(row)
        if reason is not None:
            raise RewardError(reason)
        return row

    def sides_of(self, what: str, number: int, first: Any, second: Any) -> tuple[Any, Any]:
        """Return the two responses of a pair; raises RewardError that names the pair."""
        try:
            return self.item_of(first), self.item_of(second)
        except RewardError as error:
            raise RewardError(f"{what} {number} cannot be read: {error}") from error

    def require_modest(self, asked: ItemPairs) -> None:
        """Raise RewardError for the first item that is too large."""
        for number, row in enumerate(asked.rows):
            reason = self.excess_of(row)
            if reason is not None:
                raise RewardError(f"{asked.what} {number // 2} cannot be read: {reason}")
