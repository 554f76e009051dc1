import torch
from coatstream.engine.model.coat.embedding import in_patches
from coatstream.engine.model.coat.folding import (
    Affine,
    Kernel,
    affine,
    after_norm,
    after_normalisation,
    divided,
    kernel,
    merged,
    patches,
    plus_identity,
    row_range,
    rows_scaled,
)
from torch import nn
from torch.nn import functional

from tests.support.coats import close, numbers, varied


def applied(linear: Affine, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, linear.weight.float(), linear.bias.float())


def convolved(kernel_: Kernel, picture: torch.Tensor) -> torch.Tensor:
    weight, bias = kernel_.weight.float(), kernel_.bias.float()
    return functional.conv2d(picture, weight, bias, padding=weight.shape[-1] // 2, groups=len(bias))


def test_a_layer_without_a_bias_gets_one_of_zero() -> None:
    linear = varied(nn.Linear(5, 7, bias=False))
    x = numbers(3, 5)

    close(applied(affine(linear), x), linear(x))


def test_a_norm_s_gain_and_bias_move_into_the_next_layer() -> None:
    norm, linear = varied(nn.LayerNorm(24)), varied(nn.Linear(24, 40), seed=5)
    x = 3 * numbers(2, 9, 24) + 1

    bare = functional.layer_norm(x, (24,), eps=norm.eps)

    close(applied(after_norm(norm, affine(linear)), bare), linear(norm(x)))


def test_a_convolution_of_its_own_stride_is_a_layer_on_patches() -> None:
    convolution = varied(nn.Conv2d(6, 10, kernel_size=2, stride=2))
    picture = numbers(2, 8, 12, 6)

    on_patches = applied(patches(convolution), in_patches(picture, 2))

    close(on_patches, convolution(picture.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))


def test_the_first_layer_takes_bytes_as_the_convolution_takes_normalised_pixels() -> None:
    convolution = varied(nn.Conv2d(3, 8, kernel_size=4, stride=4))
    mean, std, centre = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.tensor([124.0, 116.0, 104.0])
    bytes_ = torch.randint(0, 256, (2, 8, 16, 3), generator=torch.Generator().manual_seed(1)).float()

    normalised = (bytes_ / 255 - torch.tensor(mean)) / torch.tensor(std)
    wanted = convolution(normalised.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    found = applied(after_normalisation(patches(convolution), mean, std, centre), in_patches(bytes_ - centre, 4))

    close(found, wanted)


def test_adding_the_picture_is_part_of_its_convolution() -> None:
    convolution = varied(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    picture = numbers(2, 8, 7, 5)

    close(convolved(plus_identity(kernel(convolution)), picture), convolution(picture) + picture)


def test_kernels_of_several_sizes_are_one_of_the_largest() -> None:
    convolutions = [
        varied(nn.Conv2d(count, count, size, padding=size // 2, groups=count), seed=size)
        for size, count in ((3, 4), (5, 6), (7, 6))
    ]
    picture = numbers(2, 16, 9, 6)

    parts = torch.split(picture, [4, 6, 6], dim=1)
    wanted = torch.cat([each(part) for each, part in zip(convolutions, parts, strict=True)], dim=1)

    close(convolved(merged(map(kernel, convolutions)), picture), wanted)


def test_rows_are_scaled_and_taken_out() -> None:
    linear, x = varied(nn.Linear(4, 6)), numbers(3, 4)
    scaled = rows_scaled(affine(linear), 2, 0.25)

    close(applied(scaled, x), linear(x) * torch.tensor([0.25, 0.25, 1, 1, 1, 1]))
    close(applied(row_range(affine(linear), 2, 5), x), linear(x)[:, 2:5])


def test_a_divided_kernel_gives_divided_results() -> None:
    convolution = varied(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    picture = numbers(1, 4, 5, 5)

    close(convolved(divided(kernel(convolution), 0.25), picture), convolution(picture) * 4)
