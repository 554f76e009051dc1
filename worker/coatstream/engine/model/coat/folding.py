"""The algebra on weights: what can be computed once, before any picture comes. All of it in float64; runs nothing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Affine(NamedTuple):
    """y = W x + b, for every token alike."""

    weight: Tensor  # float64 [out, in]
    bias: Tensor  # float64 [out]


class Kernel(NamedTuple):
    """A depthwise convolution: channel c of the result is channel c of the picture, convolved with its own kernel."""

    weight: Tensor  # float64 [channels, 1, size, size], size odd
    bias: Tensor  # float64 [channels]


def affine(linear: nn.Linear) -> Affine:
    """A linear layer as it is."""
    return Affine(linear.weight.detach().double(), _bias(linear, linear.out_features))


def patches(convolution: nn.Conv2d) -> Affine:
    """A k x k convolution of stride k without padding sees each k x k patch once, so it is a linear layer on patches.

    A patch's numbers come in the order row, column, channel: the order in which a picture lies in memory.
    """
    weight = convolution.weight.detach().double().permute(0, 2, 3, 1).flatten(1)
    return Affine(weight, _bias(convolution, convolution.out_channels))


def after_norm(norm: nn.LayerNorm, linear: Affine) -> Affine:
    """W (g * x + b) + c  =  (W diag(g)) x + (W b + c): the norm's gain and bias move into the layer behind it."""
    gain, bias = norm.weight.detach().double(), norm.bias.detach().double()
    return Affine(linear.weight * gain, linear.bias + linear.weight @ bias)


def after_normalisation(linear: Affine, mean: Sequence[float], std: Sequence[float], centre: Tensor) -> Affine:
    """The first layer on bytes less `centre` instead of on normalised pictures, both with channels innermost.

    (p / 255 - mean) / std = (p - centre) / (255 std) + (centre / 255 - mean) / std: one factor and one summand for each
    input. It is exact at the edges too, because patches have no padding.
    """
    repeats = linear.weight.shape[1] // len(mean)
    mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    factor = (1 / (255 * std_)).repeat(repeats)
    summand = ((centre.double() / 255 - mean_) / std_).repeat(repeats)
    return Affine(linear.weight * factor, linear.bias + linear.weight @ summand)


def rows_scaled(linear: Affine, rows: int, scale: float) -> Affine:
    """The first `rows` results of the layer times `scale`."""
    factor = torch.ones_like(linear.bias)
    factor[:rows] = scale
    return Affine(linear.weight * factor[:, None], linear.bias * factor)


def row_range(linear: Affine, start: int, end: int) -> Affine:
    """Only the results from `start` to `end` of the layer."""
    return Affine(linear.weight[start:end], linear.bias[start:end])


def kernel(convolution: nn.Conv2d) -> Kernel:
    """A depthwise convolution as it is."""
    return Kernel(convolution.weight.detach().double(), _bias(convolution, convolution.out_channels))


def plus_identity(convolved: Kernel) -> Kernel:
    """conv(x) + x is the same convolution with 1 added in the middle of every kernel."""
    weight = convolved.weight.clone()
    middle = weight.shape[-1] // 2
    weight[:, :, middle, middle] += 1
    return Kernel(weight, convolved.bias)


def merged(kernels: Iterable[Kernel]) -> Kernel:
    """Depthwise convolutions of several sizes, each on its own channels, as one of the largest size.

    A smaller kernel with zeros around it sees the same pixels, and "same" padding keeps its middle where it was.
    """
    convolved = tuple(kernels)
    size = max(each.weight.shape[-1] for each in convolved)
    weights = [functional.pad(each.weight, [(size - each.weight.shape[-1]) // 2] * 4) for each in convolved]
    return Kernel(torch.cat(weights), torch.cat([each.bias for each in convolved]))


def divided(convolved: Kernel, divisor: float) -> Kernel:
    """conv(x) / divisor."""
    return Kernel(convolved.weight / divisor, convolved.bias / divisor)


def _bias(layer: nn.Linear | nn.Conv2d, outputs: int) -> Tensor:
    if layer.bias is None:
        return torch.zeros(outputs, dtype=torch.float64)
    return layer.bias.detach().double()
