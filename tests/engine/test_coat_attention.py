import pytest
import torch
from coatstream.engine.model.coat.attention import Attention, ClassAttention, Heads, relative_encoding
from coatstream.engine.model.coat.tokens import Grid
from torch import nn
from torch.nn import functional

from tests.support.coats import PLAIN, attention, class_last, close, numbers, varied

GRID = Grid(5, 6)


@pytest.mark.parametrize(
    ("channels", "heads", "groups"),
    [(64, 8, 4), (24, 8, 1), (128, 8, 8), (152, 8, 8), (16, 8, 1), (15, 3, 1)],
)
def test_heads_in_groups_give_what_heads_alone_give(channels: int, heads: int, groups: int) -> None:
    q, k, v = numbers(2, 31, 3 * channels).chunk(3, dim=-1)
    together = Heads(channels, heads, torch.float32)

    alone = (x.reshape(2, 31, heads, -1).transpose(1, 2) for x in (q, k, v))
    query, key, value = alone
    wanted = (query @ (key.softmax(dim=2).transpose(2, 3) @ value)).transpose(1, 2).flatten(2)

    assert together._groups == groups
    close(together(q, k, v), wanted)


@pytest.mark.parametrize("channels", [64, 152])
def test_attention_with_its_norm_is_timm_s(channels: int) -> None:
    theirs, norm = attention(channels, heads=8), varied(nn.LayerNorm(channels, eps=1e-6), seed=7)
    tokens = 2 * numbers(2, GRID.height * GRID.width + 1, channels) + 0.5
    bare = functional.layer_norm(tokens, (channels,), eps=norm.eps)

    ours = Attention(theirs, norm, relative_encoding(theirs.crpe, theirs.scale, PLAIN), PLAIN)
    attended = functional.linear(ours(class_last(bare), GRID), theirs.proj.weight, theirs.proj.bias)

    close(attended, class_last(theirs(norm(tokens), GRID)))


@pytest.mark.parametrize("channels", [64, 152])
def test_the_class_token_s_attention_is_that_of_all_tokens(channels: int) -> None:
    theirs, norm = attention(channels, heads=8), varied(nn.LayerNorm(channels, eps=1e-6), seed=7)
    tokens = 2 * numbers(2, GRID.height * GRID.width + 1, channels) + 0.5
    bare = functional.layer_norm(tokens, (channels,), eps=norm.eps)

    ours = ClassAttention(theirs, norm, PLAIN)(class_last(bare))
    attended = functional.linear(ours, theirs.proj.weight, theirs.proj.bias)

    close(attended, theirs(norm(tokens), GRID)[:, :1])
