"""CoaT's blocks on tokens as `tokens` lays them out."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from coatstream.engine.model.coat.arithmetic import Arithmetic
from coatstream.engine.model.coat.attention import Attention, ClassAttention
from coatstream.engine.model.coat.folding import affine, after_norm, kernel, plus_identity
from coatstream.engine.model.coat.layers import Depthwise, Linear
from coatstream.engine.model.coat.tokens import Grid, as_picture, as_tokens, class_token, joined


class PositionEncoding(nn.Module):
    """timm's ConvPosEnc: x + conv(x), which is one convolution. The class token passes by."""

    def __init__(self, encoding: Any, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._convolution = arithmetic.depthwise(plus_identity(kernel(encoding.proj)))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return joined(as_tokens(self._convolution(as_picture(tokens, grid))), class_token(tokens))


class Mlp(nn.Module):
    """x + W2 GELU(W1 norm(x)), two layers at run time besides the norm."""

    def __init__(self, mlp: Any, norm: nn.LayerNorm, arithmetic: Arithmetic, out: Linear | None = None) -> None:
        super().__init__()
        self._norm = arithmetic.norm(norm)
        self._hidden = arithmetic.linear(after_norm(norm, affine(mlp.fc1)), gelu=True)
        self._out = arithmetic.linear(affine(mlp.fc2)) if out is None else out

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self._out(self._hidden(self._norm(tokens)), tokens)
        return y


class SerialBlock(nn.Module):
    """Position encoding, attention, MLP. Both encodings belong to the stage and are shared by its blocks."""

    def __init__(self, block: Any, position: PositionEncoding, relative: Depthwise, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._position = position
        self._norm = arithmetic.norm(block.norm1)
        self._attention = Attention(block.factoratt_crpe, block.norm1, relative, arithmetic)
        self._projection = arithmetic.linear(affine(block.factoratt_crpe.proj))
        self._mlp = Mlp(block.mlp, block.norm2, arithmetic)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = self._position(tokens, grid)
        tokens = self._projection(self._attention(self._norm(tokens), grid), tokens)
        mixed: Tensor = self._mlp(tokens)
        return mixed


class LastBlock(nn.Module):
    """The last serial block where only its class token is read: what would follow for the other tokens is left out."""

    def __init__(self, block: Any, position: PositionEncoding, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._position = position
        self._norm = arithmetic.norm(block.norm1)
        self._attention = ClassAttention(block.factoratt_crpe, block.norm1, arithmetic)
        self._projection = arithmetic.linear(affine(block.factoratt_crpe.proj))
        self._mlp = Mlp(block.mlp, block.norm2, arithmetic)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """[n, tokens, channels] -> the class token alone, [n, 1, channels]."""
        tokens = self._position(tokens, grid)
        token = self._projection(self._attention(self._norm(tokens)), class_token(tokens))
        mixed: Tensor = self._mlp(token)
        return mixed


class ParallelBlock(nn.Module):
    """Attention in each of three scales, each scale's result added to the others at their size, then the MLPs.

    timm shares the MLP between scales. Its second layer stays shared; the first is there once a scale, as each has
    another norm before it.
    """

    def __init__(self, block: Any, relatives: Sequence[Depthwise], arithmetic: Arithmetic) -> None:
        super().__init__()
        attentions = (block.factoratt_crpe2, block.factoratt_crpe3, block.factoratt_crpe4)
        norms = (block.norm12, block.norm13, block.norm14)
        self._norms = nn.ModuleList(arithmetic.norm(norm) for norm in norms)
        self._attentions = nn.ModuleList(
            Attention(attention, norm, relative, arithmetic)
            for attention, norm, relative in zip(attentions, norms, relatives, strict=True)
        )
        self._projections = nn.ModuleList(arithmetic.linear(affine(attention.proj)) for attention in attentions)
        self._mlps = _parallel_mlps(block, arithmetic)

    def forward(self, scales: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        attended = [
            projection(attention(norm(tokens), grid))
            for tokens, grid, norm, attention, projection in zip(
                scales, grids, self._norms, self._attentions, self._projections, strict=True
            )
        ]
        summed = [tokens + sum_ for tokens, sum_ in zip(scales, _across(attended, grids), strict=True)]
        return [mlp(tokens) for mlp, tokens in zip(self._mlps, summed, strict=True)]


class LastParallelBlock(nn.Module):
    """The last parallel block, of which only the class tokens are read.

    Class tokens are not interpolated: each scale adds the sum of all three, so no picture of a scale is needed.
    """

    def __init__(self, block: Any, arithmetic: Arithmetic) -> None:
        super().__init__()
        attentions = (block.factoratt_crpe2, block.factoratt_crpe3, block.factoratt_crpe4)
        norms = (block.norm12, block.norm13, block.norm14)
        self._norms = nn.ModuleList(arithmetic.norm(norm) for norm in norms)
        self._attentions = nn.ModuleList(
            ClassAttention(attention, norm, arithmetic) for attention, norm in zip(attentions, norms, strict=True)
        )
        self._projections = nn.ModuleList(arithmetic.linear(affine(attention.proj)) for attention in attentions)
        self._mlps = _parallel_mlps(block, arithmetic)

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """[n, tokens, channels] of each scale -> its class token, [n, 1, channels]."""
        first, second, third = (
            projection(attention(norm(tokens)))
            for tokens, norm, attention, projection in zip(
                scales, self._norms, self._attentions, self._projections, strict=True
            )
        )
        attended = first + second + third
        return [mlp(tokens[:, -1:] + attended) for mlp, tokens in zip(self._mlps, scales, strict=True)]


def _parallel_mlps(block: Any, arithmetic: Arithmetic) -> nn.ModuleList:
    out = arithmetic.linear(affine(block.mlp2.fc2))
    return nn.ModuleList(
        Mlp(mlp, norm, arithmetic, out)
        for mlp, norm in ((block.mlp2, block.norm22), (block.mlp3, block.norm23), (block.mlp4, block.norm24))
    )


def _across(attended: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
    """For each scale the sum of all scales at its size. Class tokens have no size: they are added as they are."""
    pictures = [as_picture(tokens, grid) for tokens, grid in zip(attended, grids, strict=True)]
    first, second, third = (tokens[:, -1:] for tokens in attended)
    classes = first + second + third
    return [joined(as_tokens(_sum_at(scale, pictures)), classes) for scale in range(len(pictures))]


def _sum_at(scale: int, pictures: Sequence[Tensor]) -> Tensor:
    """Each scale is half of the one before: bilinear, by timm's own factors."""
    total = pictures[scale]
    for other, picture in enumerate(pictures):
        if other != scale:
            total = total + functional.interpolate(picture, scale_factor=2.0 ** (other - scale), mode="bilinear")
    return total
