"""CoaT's factorised attention with its convolutional relative encoding. Norms before it are part of its weights.

With q, k, v [tokens, channels], heads h of d channels each, and softmax over the *tokens*:

    attended = scale * q_h (softmax(k_h)^T v_h)  for every head h   +   q * conv(v)   (none for the class token)

The product in brackets is d x d and comes first, so the cost is linear in the tokens.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

from coatstream.engine.model.coat.arithmetic import Arithmetic
from coatstream.engine.model.coat.folding import affine, after_norm, divided, kernel, merged, row_range, rows_scaled
from coatstream.engine.model.coat.layers import Depthwise
from coatstream.engine.model.coat.tokens import Grid, as_picture, as_tokens, class_token, joined

# Channels that make a product worth its while: on Zen 4 and 5 in float32 groups of 8, 32 and 64 are slower, in bfloat16
# only those of 8. Wider heads stay alone.
_WIDTH: Final = 16


class Heads(nn.Module):
    """q (softmax(k)^T v) for every head: q [n, queries, channels], k and v [n, tokens, channels].

    Small heads are multiplied in groups: the product of a group's keys and values holds the products of its heads on
    the diagonal, and what crosses heads is set to zero. That is more arithmetic in fewer and larger products.
    """

    mask: Tensor

    def __init__(self, channels: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        width = channels // heads
        self._groups = _groups(heads, width)
        head = torch.arange(channels // self._groups) // width
        self._alone = self._groups == heads
        self.register_buffer("mask", (head[:, None] == head[None]).to(dtype))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        products = self._split(k.softmax(dim=1)).transpose(2, 3) @ self._split(v)
        if not self._alone:
            products = products * self.mask
        attended: Tensor = self._split(q) @ products
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """[n, tokens, channels] -> [n, groups, tokens, channels of a group]."""
        tokens, channels = x.shape[1:]
        return x.reshape(-1, tokens, self._groups, channels // self._groups).transpose(1, 2)


def _groups(heads: int, width: int) -> int:
    """The most groups of equally many heads in which a group has `_WIDTH` channels; one where no number does."""
    return next((count for count in range(heads, 0, -1) if heads % count == 0 and heads // count * width >= _WIDTH), 1)


def relative_encoding(encoding: Any, scale: float, arithmetic: Arithmetic) -> Depthwise:
    """timm's ConvRelPosEnc, one kernel for its several, divided by the attention's scale: see `Attention`."""
    return arithmetic.depthwise(divided(merged(kernel(each) for each in encoding.conv_list), scale))


class Attention(nn.Module):
    """Tokens, normed but for gain and bias -> attended, not yet projected.

    scale * q P + q * conv(v)  =  (scale q) P + (scale q) * (conv(v) / scale): the scale moves into the layer that gives
    q, and its inverse into the kernel, so that none is multiplied at run time.
    """

    def __init__(self, attention: Any, norm: nn.LayerNorm, relative: Depthwise, arithmetic: Arithmetic) -> None:
        super().__init__()
        channels = attention.qkv.in_features
        qkv = rows_scaled(affine(attention.qkv), channels, attention.scale)
        self._qkv = arithmetic.linear(after_norm(norm, qkv))
        self._heads = Heads(channels, attention.num_heads, arithmetic.dtype)
        self._relative = relative

    def forward(self, normed: Tensor, grid: Grid) -> Tensor:
        q, k, v = self._qkv(normed).chunk(3, dim=-1)
        attended = self._heads(q, k, v)
        encoded = as_tokens(self._relative(as_picture(v, grid)))
        return joined(torch.addcmul(attended[:, :-1], q[:, :-1], encoded), attended[:, -1:])


class ClassAttention(nn.Module):
    """The same for the class token alone: keys and values of all tokens, one query, no relative encoding."""

    def __init__(self, attention: Any, norm: nn.LayerNorm, arithmetic: Arithmetic) -> None:
        super().__init__()
        channels = attention.qkv.in_features
        qkv = after_norm(norm, rows_scaled(affine(attention.qkv), channels, attention.scale))
        self._q = arithmetic.linear(row_range(qkv, 0, channels))
        self._kv = arithmetic.linear(row_range(qkv, channels, 3 * channels))
        self._heads = Heads(channels, attention.num_heads, arithmetic.dtype)

    def forward(self, normed: Tensor) -> Tensor:
        """[n, tokens, channels] -> [n, 1, channels]."""
        k, v = self._kv(normed).chunk(2, dim=-1)
        attended: Tensor = self._heads(self._q(class_token(normed)), k, v)
        return attended
