"""How tokens lie: [n, height * width + 1, channels], the picture's tokens row by row and the class token last.

The picture's tokens, seen as a picture, are then channels-last as they are: nothing is transposed between convolutions
and linear layers. timm has the class token first; last, the picture begins where memory is aligned.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Size of a picture in tokens."""

    height: int
    width: int


def as_picture(tokens: Tensor, grid: Grid) -> Tensor:
    """The picture's tokens as [n, channels, height, width], channels-last, without a copy."""
    picture = tokens[:, :-1].reshape(-1, grid.height, grid.width, tokens.shape[-1])
    return picture.permute(0, 3, 1, 2)


def as_tokens(picture: Tensor) -> Tensor:
    """[n, channels, height, width], channels-last -> the picture's tokens [n, height * width, channels]."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def class_token(tokens: Tensor) -> Tensor:
    """[n, 1, channels], one piece of memory."""
    return tokens[:, -1:].contiguous()


def joined(picture_tokens: Tensor, class_tokens: Tensor) -> Tensor:
    """Both kinds of token in one tensor."""
    return torch.cat((picture_tokens, class_tokens), dim=1)
