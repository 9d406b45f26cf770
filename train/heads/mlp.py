"""The MLPs f and g_1 .. g_K, named by the strings of the released code (method.md 1.5).

Shapes: B rows, C copies, D input dimension, H output dimension.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pal.train.heads.arithmetic import Multiplying

_NAME = re.compile(r"mlp(\d+)-(relu|gelu|linear)-dropout(\d+)((?:-(?:residual|batchnorm|nobias))*)")
_ACTIVATIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "linear": lambda x: x}


@dataclass(frozen=True)
class Architecture:
    """A parsed name. ``hidden_layers`` L hidden layers and one output layer: mlp2 has three
    matrices."""

    name: str
    hidden_layers: int = 0
    activation: str = "linear"
    dropout: float = 0.0
    residual: bool = False
    batchnorm: bool = False
    bias: bool = True

    @property
    def is_identity(self) -> bool:
        return self.name == "identity"

    def sees_other_rows(self, training: bool) -> bool:
        """Say whether what a row is mapped to depends on more than that row: on what is drawn for
        it, or on the statistics of its batch. Then equal rows are not one."""
        return training and (self.dropout > 0.0 or self.batchnorm)

    def activate(self, x: Tensor, training: bool) -> Tensor:
        """Drop out, then activate: in this order, as in the released code."""
        return _ACTIVATIONS[self.activation](nn.functional.dropout(x, self.dropout, training))

    @classmethod
    def parse(cls, name: str) -> Architecture:
        """Read ``mlp{L}-{activation}-dropout{D}[-residual][-batchnorm][-nobias]`` or ``identity``.

        The digits of D are decimals: dropout5 is 0.5, dropout75 is 0.75. Raises ValueError.
        """
        if name == "identity":
            return cls(name)
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"mlp = {name!r} is not an architecture; write identity or "
                "mlp<layers>-<relu|gelu|linear>-dropout<decimals>[-residual][-batchnorm][-nobias], "
                "e.g. mlp2-gelu-dropout0"
            )
        layers, activation, decimals, flags = match.groups()
        return cls(
            name,
            hidden_layers=int(layers),
            activation=activation,
            dropout=float(f"0.{decimals}"),
            residual="-residual" in flags,
            batchnorm="-batchnorm" in flags,
            bias="-nobias" not in flags,
        )


class MLPs(Multiplying):
    """C independent MLPs of one architecture, evaluated together as batched matrix products."""

    def __init__(
        self,
        copies: int,
        d_in: int,
        d_out: int,
        architecture: Architecture,
    ) -> None:
        super().__init__()
        if (architecture.residual or architecture.is_identity) and d_in != d_out:
            raise ValueError(
                f"mlp = {architecture.name!r} keeps the dimension, so latent_dim must be {d_in}, "
                f"not {d_out}; leave it null or drop -residual"
            )
        self.architecture = architecture
        self.copies = copies
        matrices = 0 if architecture.is_identity else architecture.hidden_layers + 1
        widths = [d_in] + [d_out] * matrices
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for n_in, n_out in pairwise(widths):
            bound = 1.0 / math.sqrt(n_in)  # what torch.nn.Linear draws from
            weight_CHD = torch.empty(copies, n_out, n_in).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight_CHD))
            if architecture.bias:
                bias_CH = torch.empty(copies, n_out).uniform_(-bound, bound)
                self.biases.append(nn.Parameter(bias_CH))
        normed = architecture.hidden_layers if architecture.batchnorm else 0
        self.norms = nn.ModuleList(nn.BatchNorm1d(copies * d_out) for _ in range(normed))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map rows (B, D) by every copy: (C, B, H)."""
        if self.architecture.is_identity:
            return x_BD.expand(self.copies, *x_BD.shape)
        hidden = x_BD
        for layer in range(len(self.weights)):
            hidden = self._linear(layer, hidden)
            if layer < len(self.weights) - 1:
                hidden = self._hidden(layer, hidden)
        hidden_CBH = hidden.to(x_BD.dtype)
        return x_BD + hidden_CBH if self.architecture.residual else hidden_CBH

    @torch.no_grad()
    def along(self, x_BD: Tensor, direction_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the only copy's outputs (B, H) and their derivatives along the directions, (K, B,
        H).

        Not for training mode: dropout would be drawn, and batch normalisation would couple the
        rows.
        """
        hidden_BH, slope_KBH = x_BD, direction_KD.unsqueeze(1)
        for layer, weight_CHD in enumerate(self.weights):
            bias_H = self.biases[layer][0] if self.architecture.bias else None
            hidden_BH = nn.functional.linear(hidden_BH, weight_CHD[0], bias_H)
            # after the first layer (K, 1, H): the same for all rows
            slope_KBH = slope_KBH @ weight_CHD[0].T
            if layer < len(self.weights) - 1:
                with torch.enable_grad():
                    before_BH = hidden_BH.requires_grad_()
                    after_BH = self._hidden(layer, before_BH.unsqueeze(0))[0]
                    # the activation acts on each number alone
                    (own_BH,) = torch.autograd.grad(after_BH.sum(), before_BH)
                hidden_BH, slope_KBH = after_BH.detach(), slope_KBH * own_BH
        if self.architecture.residual:
            hidden_BH, slope_KBH = x_BD + hidden_BH, direction_KD.unsqueeze(1) + slope_KBH
        return hidden_BH, slope_KBH.expand(-1, *hidden_BH.shape)

    def _linear(self, layer: int, x: Tensor) -> Tensor:
        weight_CHD = self.weights[layer]
        x = x.to(weight_CHD.dtype)  # not that of the layer before, where only one of them is small
        bias_CH = self.biases[layer].to(x.dtype) if self.architecture.bias else None
        if x.dim() == 2 or self.copies == 1:  # all copies read the same rows: one product for all
            rows = x if x.dim() == 2 else x.squeeze(0)
            bias = None if bias_CH is None else bias_CH.flatten()
            flat = nn.functional.linear(rows, weight_CHD.flatten(0, 1), bias)
            # the products of the next layer want each copy's rows together
            return flat.unflatten(1, (self.copies, -1)).transpose(0, 1).contiguous()
        if bias_CH is None:
            return torch.bmm(x, weight_CHD.mT)
        return torch.baddbmm(bias_CH.unsqueeze(1), x, weight_CHD.mT)

    def _hidden(self, layer: int, x_CBH: Tensor) -> Tensor:
        """Normalise, drop out, activate."""
        if self.architecture.batchnorm:
            flat = x_CBH.transpose(0, 1).flatten(1)
            norm = self.norms[layer]
            assert isinstance(norm, nn.BatchNorm1d)
            # statistics are float32 whatever the products are
            normed = norm(flat.to(norm.weight.dtype)).to(flat.dtype)
            x_CBH = normed.view(len(flat), self.copies, -1).transpose(0, 1)
        return self.architecture.activate(x_CBH, self.training)
