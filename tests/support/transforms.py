"""timm's evaluation transform as the measure of ours, and pictures to try both with."""

import io

import numpy as np
from coatstream.frames.frame import CropMode, InputSpec, Pixels
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

LIMITS = {"max_bytes": 1_000_000, "max_pixels": 1_000_000}


def spec(
    size: tuple[int, int] = (224, 224), crop_pct: float = 0.9, mode: CropMode = "center", filtering: str = "bicubic"
) -> InputSpec:
    return InputSpec(*size, crop_pct, mode, filtering, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


SPECS = {
    "coat": spec(),
    "lite0": spec(crop_pct=0.875),
    "squash": spec((384, 384), 1.0, "squash"),
    "border": spec(mode="border"),
    "bilinear": spec(crop_pct=0.875, filtering="bilinear"),
    "not square": spec((160, 256)),
    "padded": spec(crop_pct=1.1),
}


def timm_prepare(picture: Image.Image, wanted: InputSpec) -> Pixels:
    transform = transforms_imagenet_eval(
        (wanted.height, wanted.width),
        crop_pct=wanted.crop_pct,
        crop_mode=wanted.crop_mode,
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        std=wanted.std,
        normalize=False,
    )
    return np.asarray(transform(picture).permute(1, 2, 0))


def difference(one: Pixels, other: Pixels) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
