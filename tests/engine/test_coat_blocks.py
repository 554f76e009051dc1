import torch
from coatstream.engine.model.coat.attention import relative_encoding
from coatstream.engine.model.coat.blocks import (
    LastBlock,
    LastParallelBlock,
    Mlp,
    ParallelBlock,
    PositionEncoding,
    SerialBlock,
)
from coatstream.engine.model.coat.embedding import PatchEmbedding, PixelEmbedding
from coatstream.engine.model.coat.tokens import Grid
from coatstream.frames.frame import InputSpec
from timm.layers import PatchEmbed
from timm.models import coat
from torch import nn
from torch.nn import functional

from tests.support.coats import PLAIN, class_last, close, numbers, pixels, varied

GRID = Grid(6, 5)
SPEC = InputSpec(16, 24, 1.0, "center", "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def serial_block(channels: int = 64) -> coat.SerialBlock:
    position = coat.ConvPosEnc(channels)
    relative = coat.ConvRelPosEnc(channels // 8, 8, {3: 2, 5: 3, 7: 3})
    block = coat.SerialBlock(channels, 8, qkv_bias=True, shared_cpe=position, shared_crpe=relative)
    return varied(block)


def parallel_block(channels: int = 24) -> coat.ParallelBlock:
    relatives = [coat.ConvRelPosEnc(channels // 8, 8, {3: 2, 5: 3, 7: 3}) for _ in range(4)]
    block = coat.ParallelBlock([channels] * 4, 8, [4] * 4, qkv_bias=True, shared_crpes=relatives)
    return varied(block)


def test_position_encoding_is_timm_s() -> None:
    theirs = varied(coat.ConvPosEnc(16))
    tokens = numbers(2, GRID.height * GRID.width + 1, 16)

    ours = PositionEncoding(theirs, PLAIN)(class_last(tokens), GRID)

    close(ours, class_last(theirs(tokens, GRID)))


def test_the_mlp_with_its_norm_and_residual_is_timm_s() -> None:
    block = serial_block()
    tokens = numbers(2, 7, 64)

    close(Mlp(block.mlp, block.norm2, PLAIN)(tokens), tokens + block.mlp(block.norm2(tokens)))


def test_a_serial_block_is_timm_s() -> None:
    theirs = serial_block()
    tokens = numbers(2, GRID.height * GRID.width + 1, 64)
    relative = relative_encoding(theirs.factoratt_crpe.crpe, theirs.factoratt_crpe.scale, PLAIN)

    ours = SerialBlock(theirs, PositionEncoding(theirs.cpe, PLAIN), relative, PLAIN)

    close(ours(class_last(tokens), GRID), class_last(theirs(tokens, GRID)))


def test_the_last_block_gives_timm_s_class_token() -> None:
    theirs = serial_block()
    tokens = numbers(2, GRID.height * GRID.width + 1, 64)

    ours = LastBlock(theirs, PositionEncoding(theirs.cpe, PLAIN), PLAIN)(class_last(tokens), GRID)

    close(ours, theirs(tokens, GRID)[:, :1])


def test_parallel_blocks_are_timm_s() -> None:
    theirs, grids = parallel_block(), [Grid(8, 12), Grid(4, 6), Grid(2, 3)]
    scales = [numbers(2, grid.height * grid.width + 1, 24, seed=seed) for seed, grid in enumerate(grids)]
    attentions = (theirs.factoratt_crpe2, theirs.factoratt_crpe3, theirs.factoratt_crpe4)
    relatives = [relative_encoding(each.crpe, each.scale, PLAIN) for each in attentions]

    _, *wanted = theirs(None, *scales, sizes=[None, *grids])
    ours = ParallelBlock(theirs, relatives, PLAIN)([class_last(tokens) for tokens in scales], grids)
    last = LastParallelBlock(theirs, PLAIN)([class_last(tokens) for tokens in scales])

    for tokens, token, theirs_ in zip(ours, last, wanted, strict=True):
        close(tokens, class_last(theirs_))
        close(token, theirs_[:, :1])


def test_patches_become_timm_s_tokens() -> None:
    theirs = varied(PatchEmbed(GRID.height * 2, 2, 16, 32, norm_layer=nn.LayerNorm, strict_img_size=False))
    tokens = numbers(2, 6 * 4 + 1, 16)
    picture = tokens[:, :-1].reshape(2, 6, 4, 16).permute(0, 3, 1, 2)

    close(PatchEmbedding(theirs, PLAIN)(tokens, Grid(6, 4)), theirs(picture))


def test_bytes_become_timm_s_tokens_of_normalised_pixels() -> None:
    theirs = varied(PatchEmbed((16, 24), 4, 3, 32, norm_layer=nn.LayerNorm))
    bytes_ = pixels(2, 16, 24)

    normalised = (bytes_.float() / 255 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)

    close(PixelEmbedding(theirs, SPEC, PLAIN)(bytes_), theirs(normalised.permute(0, 3, 1, 2)))


def test_in_bfloat16_bytes_lose_no_more_than_normalised_pixels_do() -> None:
    """With the bytes taken as they are, and not less the mean, they would lose about twice as much."""
    theirs = varied(PatchEmbed((16, 24), 4, 3, 64, norm_layer=nn.LayerNorm))
    bytes_ = pixels(8, 16, 24)
    normalised = ((bytes_.float() / 255 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)).permute(0, 3, 1, 2)
    wanted = theirs.proj(normalised).flatten(2).transpose(1, 2)
    embedding = PixelEmbedding(theirs, SPEC, type(PLAIN)(torch.bfloat16, packed=False))

    weight, bias = theirs.proj.weight.bfloat16(), theirs.proj.bias.bfloat16()
    theirs_ = functional.conv2d(normalised.bfloat16(), weight, bias, stride=4).flatten(2).transpose(1, 2)
    ours = embedding.projected(bytes_)

    assert (ours.float() - wanted).abs().mean() < 1.1 * (theirs_.float() - wanted).abs().mean()
