"""From a picture to tokens: each k x k patch becomes a token of half the rows and columns (a quarter at first)."""

from typing import Any

import torch
from torch import Tensor, nn

from coatstream.engine.model.coat.arithmetic import Arithmetic
from coatstream.engine.model.coat.folding import after_normalisation, patches
from coatstream.engine.model.coat.tokens import Grid
from coatstream.frames.frame import InputSpec


def in_patches(picture: Tensor, size: int) -> Tensor:
    """[n, height, width, channels] -> [n, patches, size * size * channels], each patch's rows one after another."""
    _, height, width, channels = picture.shape
    strips = picture.reshape(-1, height // size, size, width // size, size * channels)
    return strips.transpose(2, 3).reshape(-1, (height // size) * (width // size), size * size * channels)


class PatchEmbedding(nn.Module):
    """timm's PatchEmbed, its convolution as a linear layer on patches."""

    def __init__(self, embedding: Any, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._size = embedding.proj.stride[0]
        self._linear = arithmetic.linear(patches(embedding.proj))
        self._norm = arithmetic.affine_norm(embedding.norm)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens of the stage before, with its class token -> the picture's tokens of this one."""
        picture = tokens[:, :-1].reshape(-1, *grid, tokens.shape[-1])
        normed: Tensor = self._norm(self._linear(in_patches(picture, self._size)))
        return normed


class PixelEmbedding(nn.Module):
    """The first one: takes bytes, and has the normalisation of pixels in its weights.

    Bytes less the whole number next to 255 mean are whole numbers of at most 8 bits, which bfloat16 holds exactly; the
    rest of the mean is in the bias. With the bytes as they are, the products would nearly cancel against the bias, and
    what bfloat16 rounds off them would be large beside what is left.
    """

    centre: Tensor

    def __init__(self, embedding: Any, spec: InputSpec, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._size = embedding.proj.stride[0]
        centre = (255 * torch.tensor(spec.mean, dtype=torch.float64)).round()
        linear = after_normalisation(patches(embedding.proj), spec.mean, spec.std, centre)
        self._linear = arithmetic.linear(linear)
        self._norm = arithmetic.affine_norm(embedding.norm)
        self.register_buffer("centre", centre.repeat(self._size**2).to(arithmetic.dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] -> [n, tokens, channels]."""
        normed: Tensor = self._norm(self.projected(pixels))
        return normed

    def projected(self, pixels: Tensor) -> Tensor:
        """The tokens before their norm."""
        tokens: Tensor = self._linear(in_patches(pixels, self._size) - self.centre)
        return tokens
