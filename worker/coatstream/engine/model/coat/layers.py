"""The layers that do the work, plain or packed for oneDNN.

Plain layers run anywhere, CUDA included, and can be traced, compiled and exported. Packed ones run on a CPU only: their
weights lie as oneDNN wants them, once and for all. They are no buffers: nothing but oneDNN can read them, so they can
be neither moved nor converted.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainLinear(nn.Module):
    """x -> W x + b [+ residual], or GELU(W x + b)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool) -> None:
        super().__init__()
        self._gelu = gelu
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        if self._gelu:
            y = functional.gelu(y)
        return y if residual is None else y + residual


class PackedLinear(nn.Module):
    """The same, packed; GELU and residual are done where the product lies in cache.

    On AMD's processors PyTorch's own float32 product (MKL) is far slower than oneDNN's: `coatstream bench engine` shows
    how much, in the lines limit_mm and limit_conv1x1.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool) -> None:
        super().__init__()
        self._after = "gelu" if gelu else "none"
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            y: Tensor = product(x, self._weight, self._bias, self._after, [], "none")
        else:
            y = product.binary(x, residual, self._weight, self._bias, "add")
        return y


class PlainDepthwise(nn.Module):
    """A depthwise convolution of pictures [n, channels, height, width] that lie channels-last."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    def forward(self, picture: Tensor) -> Tensor:
        channels, padding = self.weight.shape[0], self.weight.shape[-1] // 2
        return functional.conv2d(picture, self.weight, self.bias, padding=padding, groups=channels)


class PackedDepthwise(nn.Module):
    """The same, packed, which saves putting the weights in order in each call."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self._channels, self._padding = weight.shape[0], weight.shape[-1] // 2
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(), self._padding, 1, 1, self._channels
        )
        self._bias = bias

    def forward(self, picture: Tensor) -> Tensor:
        around, one = [self._padding] * 2, [1, 1]
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            picture, self._weight, self._bias, around, one, one, self._channels, "none", [], ""
        )
        return y


class Norm(nn.Module):
    """Layer norm without gain and bias: the next layer has them in its weights.

    In float32 on a CPU it multiplies by one and adds zero all the same: PyTorch's kernel without them has no SIMD.
    """

    one: Tensor | None
    zero: Tensor | None

    def __init__(self, norm: nn.LayerNorm, *, spelled_out: bool) -> None:
        super().__init__()
        self._shape = norm.normalized_shape
        self._eps = norm.eps
        self.register_buffer("one", torch.ones(self._shape) if spelled_out else None)
        self.register_buffer("zero", torch.zeros(self._shape) if spelled_out else None)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.layer_norm(tokens, self._shape, self.one, self.zero, self._eps)


class AffineNorm(nn.Module):
    """Layer norm with its gain and bias, for where no linear layer follows that could take them over."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self._shape = norm.normalized_shape
        self._eps = norm.eps
        self.register_buffer("weight", norm.weight.detach().to(dtype))
        self.register_buffer("bias", norm.bias.detach().to(dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.layer_norm(tokens, self._shape, self.weight, self.bias, self._eps)


Linear = PlainLinear | PackedLinear
Depthwise = PlainDepthwise | PackedDepthwise
