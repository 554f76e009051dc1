"""What the model sees of a picture: the middle, the whole, or regions. A pixel's colour tells where it was."""

from itertools import pairwise

import numpy as np
import pytest
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.resizing import prepare
from coatstream.frames.views import Region, View, beyond_picture, boxes, look

SPEC = InputSpec(32, 32, 0.875, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def ramp(height: int, width: int) -> Pixels:
    """Red grows to the right, green downwards."""
    red, green = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return np.stack(
        [
            np.broadcast_to(red, (height, width)),
            np.broadcast_to(green[:, None], (height, width)),
            np.zeros((height, width)),
        ],
        axis=2,
    ).astype(np.uint8)


def spans(views: Pixels, channel: int) -> list[tuple[float, float]]:
    views = views if views.ndim == 4 else views[np.newaxis]
    return [(float(view[..., channel].min()), float(view[..., channel].max())) for view in views]


def near(shown: tuple[float, float], low: float, high: float, off: float = 8) -> bool:
    return abs(shown[0] - low) <= off and abs(shown[1] - high) <= off


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(360, 640, 2), (480, 640, 2), (640, 360, 2), (400, 400, 1), (300, 900, 3), (768, 1366, 2), (100, 2000, 4)],
)
def test_the_whole_is_as_few_squares_as_cover_the_picture(height: int, width: int, count: int) -> None:
    views = look(ramp(height, width), SPEC, "whole")

    shown = spans(views, 0 if width >= height else 1)
    assert len(shown) == count
    if count < 4:
        assert near((shown[0][0], shown[-1][1]), 0, 255)
        assert all(later[0] <= earlier[1] + 8 for earlier, later in pairwise(shown))
    assert near(spans(views, 1 if width >= height else 0)[0], 0, 255)


def test_the_centre_is_what_the_models_own_evaluation_sees() -> None:
    picture = ramp(360, 640)

    assert np.array_equal(look(picture, SPEC, "centre"), prepare(picture, SPEC))
    assert near(spans(look(picture, SPEC, "centre"), 0)[0], 65, 190, 3)


@pytest.mark.parametrize(
    ("height", "width", "whole"), [(360, 640, True), (480, 640, True), (400, 480, False), (400, 400, False)]
)
def test_auto_takes_the_whole_where_over_a_fifth_lies_beside_the_middle(height: int, width: int, whole: bool) -> None:
    assert (look(ramp(height, width), SPEC, "auto").ndim == 4) is whole


@pytest.mark.parametrize("points", [((0.5, 0.25), (0.75, 0.75)), ((320, 90), (480, 270))])
def test_a_region_is_cut_from_the_whole_picture_in_shares_or_in_pixels(points: tuple[tuple[float, float], ...]) -> None:
    seen = look(ramp(360, 640), SPEC, (Region("gate", points),))

    assert near(spans(seen, 0)[0], 128, 191, 4)
    assert near(spans(seen, 1)[0], 64, 191, 4)


def test_what_lies_beside_a_polygon_is_grey() -> None:
    triangle = Region("till", ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))

    seen = look(np.full((360, 640, 3), 255, np.uint8), SPEC, (triangle, Region("all", ((0, 0), (1, 1)))))

    assert (seen[0, 4, 4, 0], seen[0, 28, 28, 0], seen[1, 28, 28, 0]) == (255, 127, 255)


@pytest.mark.parametrize("at", [((0.3, 0.3), (0.3, 0.3)), ((5000, 5000), (6000, 6000)), ((639, 359), (640, 360))])
def test_a_region_of_nothing_or_beside_the_picture_is_its_nearest_pixel(at: tuple[tuple[float, float], ...]) -> None:
    assert look(ramp(360, 640), SPEC, (Region("speck", at),)).shape == (32, 32, 3)


@pytest.mark.parametrize("view", ["centre", "whole", (Region("gate", ((0.5, 0.25), (0.75, 0.75))),)])
def test_boxes_are_what_the_inputs_show(view: View) -> None:
    shown = spans(look(ramp(360, 640), SPEC, view), 0)

    corners = [points for _, points in boxes(360, 640, SPEC, view)]

    assert len(shown) == len(corners)
    for seen, ((left, _), (right, _)) in zip(shown, corners, strict=True):
        assert near(seen, left / 640 * 255, right / 640 * 255, 5)


def test_regions_of_a_larger_picture_are_named() -> None:
    view = (
        Region("gate", ((0, 0), (640, 360))),
        Region("till", ((600, 100), (641, 300))),
        Region("door", ((0.5, 0.5), (1.0, 1.0))),
    )

    assert beyond_picture(view, 360, 640) == ("till",)
    assert beyond_picture("whole", 360, 640) == ()
