"""MLPs that a prior can hold: they begin as zero, on features of one size.

Shapes: B rows, C copies, D input dimension, F features of the last hidden layer, H outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pal.train.heads.mlp import Architecture, MLPs


class HeldMLPs(nn.Module):
    """C MLPs of one architecture. phi(x) are the activations of the last hidden layer, less their
    mean and divided by their size over the training, and the output is W phi(x) + b with W and b
    zero at first.

    So if W and b are drawn from N(0, 1), outputs have a variance of about one; that is what makes
    one strength of a prior mean the same for all architectures and dimensions. Hidden layers are
    alike in all copies at first, and read coordinates of variance one: those of a Standardiser are
    so small that an activation hardly bends.
    """

    centre_F: Tensor
    norm: Tensor

    def __init__(self, copies: int, d_in: int, d_out: int, architecture: Architecture) -> None:
        super().__init__()
        name = architecture.name
        if architecture.residual or architecture.batchnorm or architecture.is_identity:
            raise ValueError(
                f"mlp = {name!r} cannot be held by priors; write it without -residual and "
                "-batchnorm, e.g. mlp2-gelu-dropout0"
            )
        self.architecture, self.copies = architecture, copies
        self.gain = math.sqrt(d_in)
        drawn = MLPs(1, d_in, d_out, architecture)
        hidden = architecture.hidden_layers
        self.weights = nn.ParameterList(
            weight.detach().repeat(copies, 1, 1) for weight in list(drawn.weights)[:hidden]
        )
        self.biases = nn.ParameterList(
            bias.detach().repeat(copies, 1) for bias in list(drawn.biases)[:hidden]
        )
        width = d_out if hidden else d_in
        self.out_CHF = nn.Parameter(torch.zeros(copies, d_out, width))
        self.bias_CH = nn.Parameter(torch.zeros(copies, d_out))
        self.register_buffer("centre_F", torch.zeros(width))
        self.register_buffer("norm", torch.tensor(1.0))

    def features(self, x_BD: Tensor) -> Tensor:
        """Return phi of rows by every copy, (C, B, F)."""
        hidden_CBF = (self.gain * x_BD).expand(self.copies, *x_BD.shape)
        for layer, weight_CFD in enumerate(self.weights):
            if self.architecture.bias:
                bias_C1F = self.biases[layer].unsqueeze(1)
                hidden_CBF = torch.baddbmm(bias_C1F, hidden_CBF, weight_CFD.mT)
            else:
                hidden_CBF = torch.bmm(hidden_CBF, weight_CFD.mT)
            hidden_CBF = self.architecture.activate(hidden_CBF, self.training)
        return (hidden_CBF - self.centre_F) / self.norm

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map rows (B, D) by every copy: (C, B, H)."""
        return torch.baddbmm(self.bias_CH.unsqueeze(1), self.features(x_BD), self.out_CHF.mT)

    @torch.no_grad()
    def fit(self, x_BD: Tensor, other_BD: Tensor | None = None) -> None:
        """Take mean and size of the features from rows of the training; where only differences from
        ``other_BD`` count, the size of those, less their mean."""
        was_training = self.training
        self.eval()
        self.centre_F.zero_()
        self.norm.fill_(1.0)
        found_BF = self.features(x_BD)[0]
        self.centre_F.copy_(found_BF.mean(dim=0))
        if other_BD is not None:
            found_BF = found_BF - self.features(other_BD)[0] - self.centre_F
        size = (found_BF - found_BF.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        self.norm.copy_(torch.where(size > 0.0, size, 1.0))
        self.train(was_training)

    def hidden(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the hidden layers by name."""
        of_layers = {"weights": self.weights, "biases": self.biases}
        return {f"{n}.{i}": p for n, layers in of_layers.items() for i, p in enumerate(layers)}


def moved(now: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> Tensor:
    """Return -ln N of layers round their first values, up to a constant, each with the variance
    that it was drawn with: 1 / 3n for n inputs. A bias has the inputs of its weights."""
    away = [
        3.0
        * now[name.replace("biases", "weights")].shape[-1]
        * (value - first[name]).square().sum()
        for name, value in now.items()
    ]
    return 0.5 * torch.stack(away).sum() if away else torch.zeros(())


def deviating(value_K: Tensor, sigma: float) -> Tensor:
    """Return -ln N of K values v_k = v_0 + sigma delta_k with v_0 and delta_k from N(0, 1), up to
    a constant, the first dimension being K: what is left when v_0 is integrated out. The inverse of
    the covariance sigma^2 I + 1 1^T is (I - 1 1^T / (sigma^2 + K)) / sigma^2."""
    square = value_K.square().sum()
    shared = value_K.sum(dim=0).square().sum() / (sigma**2 + len(value_K))
    return (square - shared) / (2.0 * sigma**2)
