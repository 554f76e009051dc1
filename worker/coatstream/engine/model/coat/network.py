"""The fused network: CoaT from bytes to logits."""

from typing import Any, Final

import torch
from timm.layers import DropPath, LayerNorm, Mlp, PatchEmbed
from timm.models import coat
from torch import Tensor, nn

from coatstream.engine.model.classifier import TimmClassifier
from coatstream.engine.model.coat.arithmetic import Arithmetic
from coatstream.engine.model.coat.attention import relative_encoding
from coatstream.engine.model.coat.blocks import (
    LastBlock,
    LastParallelBlock,
    ParallelBlock,
    PositionEncoding,
    SerialBlock,
)
from coatstream.engine.model.coat.embedding import PatchEmbedding, PixelEmbedding
from coatstream.engine.model.coat.folding import affine
from coatstream.engine.model.coat.tokens import Grid, joined
from coatstream.engine.protocol import NotHere
from coatstream.frames.frame import InputSpec

# What the rewrite knows. Any other part, put there by an option of timm's, and the model is not fused.
_KNOWN: Final = {
    *(coat.CoaT, coat.SerialBlock, coat.ParallelBlock, coat.ConvPosEnc, coat.ConvRelPosEnc),
    *(coat.FactorAttnConvRelPosEnc, PatchEmbed, Mlp, LayerNorm, DropPath),
    *(nn.LayerNorm, nn.Linear, nn.Conv2d, nn.Conv1d, nn.GELU, nn.Dropout, nn.Identity, nn.ModuleList),
}
_STAGES: Final = (1, 2, 3, 4)


def is_coat(module: nn.Module) -> bool:
    """Whether this is one of timm's CoaT models in the shape that the fused network rewrites."""
    return (
        isinstance(module, coat.CoaT)
        and module.global_pool == "token"  # of "avg", nothing could be left out in the last block
        and isinstance(getattr(module, "head", None), nn.Linear)
        and all(_is_known(part) for part in module.modules())
        and all(_is_whole(getattr(module, f"patch_embed{stage}")) for stage in _STAGES)
    )


def _is_known(part: Any) -> bool:
    if isinstance(part, nn.LayerNorm):
        return type(part) in _KNOWN and {"weight", "bias"} <= {name for name, _ in part.named_parameters()}
    if isinstance(part, nn.GELU):
        return part.approximate == "none"
    if isinstance(part, Mlp):
        return isinstance(part.norm, nn.Identity) and isinstance(part.act, nn.GELU)
    return type(part) in _KNOWN


def _is_whole(embedding: Any) -> bool:
    """Whether square patches cover the picture, each pixel once."""
    if embedding is None or embedding.img_size is None:
        return False
    convolution, side = embedding.proj, embedding.proj.stride[0]
    return (
        convolution.kernel_size == convolution.stride == (side, side)
        and convolution.padding == (0, 0)
        and all(length % side == 0 for length in embedding.img_size)
    )


def fused_network(
    classifier: TimmClassifier, *, dtype: torch.dtype, packed: bool, embeddings: bool = False
) -> "CoatNetwork":
    """The classifier as a network. Raises NotHere where it is no CoaT, EngineError without such an arithmetic."""
    if not is_coat(classifier.module):
        raise NotHere(f"{classifier.name} is no CoaT, and only those can be fused")
    arithmetic = Arithmetic(dtype, packed)
    with torch.no_grad():
        return CoatNetwork(classifier.module, classifier.spec, arithmetic, embeddings=embeddings).eval()


class CoatNetwork(nn.Module):
    """Four stages, each at half the rows and columns of the one before, and what makes features of them."""

    def __init__(self, module: Any, spec: InputSpec, arithmetic: Arithmetic, *, embeddings: bool) -> None:
        super().__init__()
        self._embeddings = embeddings
        self._pixels = PixelEmbedding(module.patch_embed1, spec, arithmetic)
        self._patches = nn.ModuleList(
            PatchEmbedding(getattr(module, f"patch_embed{stage}"), arithmetic) for stage in _STAGES[1:]
        )
        lite = module.parallel_blocks is None
        encodings = [Encodings(module, stage, arithmetic) for stage in _STAGES]
        self._stages = nn.ModuleList(
            Stage(module, stage, encodings[stage - 1], arithmetic, last=lite and stage == _STAGES[-1])
            for stage in _STAGES
        )
        self._top = ClassTop(module, arithmetic) if lite else ParallelTop(module, encodings[1:], arithmetic)
        self._head = arithmetic.linear(affine(module.head))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 [n, height, width, 3] -> (logits,) or (logits, pooled)."""
        scales = [self._stages[0](self._pixels(pixels))]
        for patches, stage, below in zip(self._patches, self._stages[1:], self._stages[:-1], strict=True):
            scales.append(stage(patches(scales[-1], below.grid)))
        pooled = self._top(scales)
        logits = self._head(pooled).float()
        return (logits, pooled.float()) if self._embeddings else (logits,)


class Encodings:
    """The two position encodings of a stage, which all its blocks share."""

    def __init__(self, module: Any, stage: int, arithmetic: Arithmetic) -> None:
        attention = getattr(module, f"serial_blocks{stage}")[0].factoratt_crpe
        self.grid = Grid(*getattr(module, f"patch_embed{stage}").grid_size)
        self.position = PositionEncoding(getattr(module, f"cpe{stage}"), arithmetic)
        self.relative = relative_encoding(getattr(module, f"crpe{stage}"), attention.scale, arithmetic)


class Stage(nn.Module):
    """A class token and the serial blocks of one size."""

    token: Tensor

    def __init__(self, module: Any, stage: int, encodings: Encodings, arithmetic: Arithmetic, *, last: bool) -> None:
        super().__init__()
        self.grid = encodings.grid
        blocks = getattr(module, f"serial_blocks{stage}")
        position, relative = encodings.position, encodings.relative
        self._blocks = nn.ModuleList(
            LastBlock(block, position, arithmetic)
            if last and block is blocks[-1]
            else SerialBlock(block, position, relative, arithmetic)
            for block in blocks
        )
        self.register_buffer("token", getattr(module, f"cls_token{stage}").detach().to(arithmetic.dtype))

    def forward(self, picture_tokens: Tensor) -> Tensor:
        tokens = joined(picture_tokens, self.token.expand(picture_tokens.shape[0], -1, -1))
        for block in self._blocks:
            tokens = block(tokens, self.grid)
        return tokens


class ClassTop(nn.Module):
    """CoaT-Lite: the features are the last stage's class token, normed."""

    def __init__(self, module: Any, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._norm = arithmetic.affine_norm(module.norm4)

    def forward(self, scales: list[Tensor]) -> Tensor:
        pooled: Tensor = self._norm(scales[-1][:, -1])
        return pooled


class ParallelTop(nn.Module):
    """CoaT: parallel blocks over the last three scales; features are a weighted sum of their normed class tokens."""

    weights: Tensor
    bias: Tensor

    def __init__(self, module: Any, encodings: list[Encodings], arithmetic: Arithmetic) -> None:
        super().__init__()
        self._grids = [each.grid for each in encodings]
        self._positions = nn.ModuleList(each.position for each in encodings)
        relatives = [each.relative for each in encodings]
        *blocks, last = module.parallel_blocks
        self._blocks = nn.ModuleList(ParallelBlock(block, relatives, arithmetic) for block in blocks)
        self._last = LastParallelBlock(last, arithmetic)
        norms = (module.norm2, module.norm3, module.norm4)
        self._norms = nn.ModuleList(arithmetic.affine_norm(norm) for norm in norms)
        self.register_buffer("weights", module.aggregate.weight.detach().view(3, 1).to(arithmetic.dtype))
        self.register_buffer("bias", module.aggregate.bias.detach().to(arithmetic.dtype))

    def forward(self, scales: list[Tensor]) -> Tensor:
        scales = scales[1:]
        for block in self._blocks:
            scales = block(self._encoded(scales), self._grids)
        tokens = self._last(self._encoded(scales))
        normed = torch.cat([norm(token) for norm, token in zip(self._norms, tokens, strict=True)], dim=1)
        return (normed * self.weights).sum(dim=1) + self.bias

    def _encoded(self, scales: list[Tensor]) -> list[Tensor]:
        return [
            position(tokens, grid) for position, tokens, grid in zip(self._positions, scales, self._grids, strict=True)
        ]
