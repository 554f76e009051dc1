"""Makes docs/view.jpg: what a model sees of one picture, for three kinds of `view`, and how sure of the bird it is.

python docs/view_picture.py

The picture is one of the package's own clip, the model EfficientNet-Lite0, the drawing that of
`coatstream cameras view --save`.
"""

import sys
from pathlib import Path

import numpy as np
from coatstream.commands.view import drawn
from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Frame, Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.views import Region, View, look
from coatstream.pipeline.inference import prediction_of
from coatstream.pipeline.joining import joined
from coatstream.results.events.tag_classes import tag_classes
from coatstream.settings.model import TagSettings

ROOT = Path(__file__).parents[1]
AT = 11.6  # seconds into the clip, chosen: the bird is at the right
SIZE, GAP, HEAD = (640, 360), 12, 58
REGIONS = (Region("bird", ((0.5, 0.0), (1.0, 1.0))), Region("window", ((0.0, 0.88), (0.25, 0.88), (0.25, 1), (0, 1))))
VIEWS: tuple[tuple[str, View], ...] = (("centre", "centre"), ("whole", "whole"), ("regions", REGIONS))


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from bench.tags import COCKATOO, lite0, pictures_of

    rgb = next(picture for at, picture in pictures_of(COCKATOO) if at >= AT)
    engine = lite0()
    panels = [_panel(name, rgb, view, engine) for name, view in VIEWS]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    made = np.hstack([part for panel in panels for part in (panel, gap)][:-1])
    if not cv2.imwrite(str(ROOT / "docs" / "view.jpg"), made, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        raise SystemExit("docs/view.jpg cannot be written")


def _panel(name: str, rgb: Pixels, view: View, engine: Engine) -> Pixels:
    """BGR: the picture as drawn, below a head with the view's name and the score of the group `bird`."""
    views = look(rgb, engine.spec, view)
    inputs = views if views.ndim == 4 else views[np.newaxis]
    scores = joined([engine.classify(inputs)], [len(inputs)]).frames
    frame = Frame("clip", "", 0.0, views, rgb.shape[1], rgb.shape[0])
    tags = tag_classes(TagSettings(include=("bird",)), engine.labels)
    said = f"bird {tags.scores(prediction_of(frame, scores, 0, engine)).get('bird', 0.0):.2f}"
    print(f"{name}: inputs {len(inputs)}, {said}")
    head = np.full((HEAD, SIZE[0], 3), 255, np.uint8)
    for row, text in enumerate((f"view: {name}", f"{len(inputs)} input{'s' * (len(inputs) > 1)}, {said}")):
        cv2.putText(head, text, (2, 22 + 26 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (60, 60, 60), 1, cv2.LINE_AA)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    return np.vstack([head, np.asarray(cv2.resize(drawn(bgr, engine.spec, view), SIZE), np.uint8)])


if __name__ == "__main__":
    main()
