"""Token ids that somebody else made, as the encoder was trained to read them."""

from __future__ import annotations

import torch
from torch import Tensor

from pal.embed.render import Renderer


class WholeTexts:
    """Puts back the special tokens that stage one has and a trainer leaves out, and shortens.

    TRL tokenises without special tokens: BERT's [CLS] and [SEP] are missing then, and a Llama's
    beginning of text.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.longest = renderer.config.max_length
        self.pad_id = renderer.tokenizer.pad_token_id or 0
        self.first, self.last = ([], []) if renderer.is_chat else _special(renderer)

    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (B, longest), padded at the right, of rows padded at any side.

        A text without a token is its special tokens, or else one token of padding.
        """
        rows = [self._whole(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
        width = max(map(len, rows), default=1)
        padded = [row + [self.pad_id] * (width - len(row)) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        is_text = torch.arange(width, device=ids.device) < lengths.unsqueeze(1)
        return torch.tensor(padded, dtype=torch.long, device=ids.device), is_text

    def _whole(self, row: list[int]) -> list[int]:
        if self.first and row[: len(self.first)] == self.first:
            row = row[len(self.first) :]
        if self.last and row[len(row) - len(self.last) :] == self.last:
            row = row[: len(row) - len(self.last)]
        room = self.longest - len(self.first) - len(self.last)
        row = row[len(row) - room :] if len(row) > room else row  # the answer stands at the end
        return [*self.first, *row, *self.last] or [self.pad_id]


def _special(renderer: Renderer) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and behind a text."""
    plain, whole = (
        renderer.tokenizer("a", add_special_tokens=special)["input_ids"]
        for special in (False, True)
    )
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
