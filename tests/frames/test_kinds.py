"""Every kind of picture is what Pillow makes of it, or refused."""

import io

import numpy as np
import pytest
import tifffile
from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels
from coatstream.frames.orientation import orientation_in
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.frames.kinds import SIZE, Kind, exif_of, kinds, photo, saved

KINDS = list(kinds())


def decoded(data: bytes) -> Pixels:
    return decode(data, max_bytes=10**7, max_pixels=10**6)


def by_pillow(data: bytes) -> Pixels:
    """Of 16-bit grey the upper byte: Pillow's own conversion cuts off all above 255."""
    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode.startswith("I;16"):
            return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def test_there_are_at_least_80_kinds() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 80


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_picture_is_what_pillow_makes_of_it(kind: Kind) -> None:
    ours, theirs = decoded(kind.data), by_pillow(kind.data)

    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= kind.level
    assert ours.flags.c_contiguous


@pytest.mark.parametrize(("extra", "reads"), [("unspecified", True), ("unassalpha", False)])
def test_a_tiff_with_ink_and_alpha_loses_its_alpha_or_is_refused(extra: str, reads: bool) -> None:
    ink = np.asarray(photo("CMYK"))
    alpha = np.full((*ink.shape[:2], 1), 90, np.uint8)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.concatenate([ink, alpha], 2), photometric="separated", extrasamples=[extra])

    if reads:
        assert np.array_equal(decoded(stream.getvalue()), by_pillow(saved(photo("CMYK"), "TIFF")))
    else:  # Pillow does not know it either
        with pytest.raises(BadFrame, match="unknown kind"):
            decoded(stream.getvalue())


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_of_type_byte_is_one_too_though_pillow_passes_it_over(order: str) -> None:
    assert decoded(saved(photo(), "JPEG", exif=exif_of(order, 1, 6))).shape[:2] == SIZE


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int32, np.float64])
def test_a_tiff_of_wide_numbers_is_refused_with_its_kind(dtype: type) -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((20, 30), dtype))

    with pytest.raises(BadFrame, match=r"8 and 16 can be read|unknown kind") as caught:
        decoded(stream.getvalue())

    assert caught.value.reason is DeadReason.UNDECODABLE


@pytest.mark.parametrize("form", ["BMP", "TIFF"])
def test_a_picture_that_pillow_decodes_and_is_cut_off_is_refused(form: str) -> None:
    data = saved(photo(), form)

    with pytest.raises(BadFrame, match="bytes are no picture that can be read"):
        decoded(data[: len(data) // 2])


@given(st.binary(max_size=80), st.sampled_from([b"II*\0", b"MM\0*"]))
def test_whatever_the_exif_the_orientation_is_one_of_eight(rest: bytes, order: bytes) -> None:
    assert 1 <= orientation_in(order + rest) <= 8
