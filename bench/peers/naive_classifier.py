"""What the peers run: timm's model as it is, in float32, behind timm's own transform. OpenCV decodes.

This is what their users write; only the servers around it differ. Threads are set, as each server's guide advises.
"""

import os
from typing import Any

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

TOP = 5

Answer = list[tuple[int, float]]  # class index and probability, best first


class NaiveClassifier:
    """JPEG in, the five best classes out."""

    def __init__(self, model: str, weights: str, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._model = timm.create_model(model).eval()
        self._model.load_state_dict(load_file(weights))
        self._transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(self._model), is_training=False
        )

    def open(self, jpeg: bytes) -> Tensor:
        """float32 [3, height, width]."""
        decoded: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        picture: Tensor = self._transform(Image.fromarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)))
        return picture

    @torch.inference_mode()
    def probabilities(self, pictures: list[Tensor]) -> Tensor:
        """float32 [n, classes]."""
        probabilities: Tensor = self._model(torch.stack(pictures)).softmax(-1)
        return probabilities

    def classify(self, pictures: list[Tensor]) -> list[Answer]:
        scores, classes = self.probabilities(pictures).topk(TOP)
        return [list(zip(*pair, strict=True)) for pair in zip(classes.tolist(), scores.tolist(), strict=True)]


def from_environment() -> NaiveClassifier:
    """As the benchmark says it to the servers' processes, some of which are started by others."""
    return NaiveClassifier(
        os.environ["PEER_MODEL"], os.environ["PEER_WEIGHTS"], threads=int(os.environ.get("PEER_THREADS", "1"))
    )


def number(name: str) -> int:
    """One of the settings of a server: PEER_WORKERS, PEER_BATCH, PEER_WAIT_MS, PEER_PORT ..."""
    return int(os.environ[f"PEER_{name}"])


Picture = NDArray[np.float32]
