"""In which arithmetic a fused network runs: makes its layers, all of one precision, all plain or all packed."""

from dataclasses import dataclass

import torch
from torch import nn

from coatstream.engine.model.coat.folding import Affine, Kernel
from coatstream.engine.model.coat.layers import (
    AffineNorm,
    Depthwise,
    Linear,
    Norm,
    PackedDepthwise,
    PackedLinear,
    PlainDepthwise,
    PlainLinear,
)
from coatstream.errors import EngineError, first_line


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The precision, and whether layers are packed for oneDNN: `layers` explains that."""

    dtype: torch.dtype
    packed: bool

    def __post_init__(self) -> None:
        """Tries packed layers once. Raises EngineError where this machine has none of this precision."""
        if not self.packed:
            return
        try:
            zeros = torch.zeros(16, 16, dtype=torch.float64)
            self.linear(Affine(zeros, zeros[0]), gelu=True)(zeros.to(self.dtype))
            picture = zeros.to(self.dtype).view(1, 4, 4, 16).permute(0, 3, 1, 2)
            self.depthwise(Kernel(zeros[:, :9].view(16, 1, 3, 3), zeros[0]))(picture)
        except (RuntimeError, AttributeError) as error:
            raise EngineError(f"no packed layers in {self.dtype} on this machine: {first_line(error)}") from None

    def linear(self, affine: Affine, *, gelu: bool = False) -> Linear:
        """x -> W x + b, then GELU where asked for; or, called with a residual, W x + b + residual."""
        kind = PackedLinear if self.packed else PlainLinear
        return kind(affine.weight.to(self.dtype), affine.bias.to(self.dtype), gelu=gelu)

    def depthwise(self, kernel: Kernel) -> Depthwise:
        """A depthwise convolution whose result is as large as the picture."""
        kind = PackedDepthwise if self.packed else PlainDepthwise
        return kind(kernel.weight.to(self.dtype), kernel.bias.to(self.dtype))

    def norm(self, norm: nn.LayerNorm) -> Norm:
        """The norm without its gain and bias."""
        return Norm(norm, spelled_out=self.packed and self.dtype == torch.float32)

    def affine_norm(self, norm: nn.LayerNorm) -> AffineNorm:
        """The norm with its gain and bias."""
        return AffineNorm(norm, self.dtype)
