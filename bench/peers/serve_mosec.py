"""mosec: one stage that does everything, or decoders in front of the model (PEER_DECODERS). Batches are its own."""

import os
import sys
from typing import Any

import torch
from mosec import Server, Worker

from bench.peers.naive_classifier import Answer, Picture, from_environment, number


class _Raw(Worker):
    """Takes the picture as the body of the request."""

    def deserialize(self, data: bytes) -> bytes:
        return data


class Decode(_Raw):
    def __init__(self) -> None:
        self._classifier = from_environment()

    def forward(self, data: bytes) -> Picture:
        picture: Picture = self._classifier.open(data).numpy()
        return picture


class MosecClassifier(Worker):
    def __init__(self) -> None:
        self._classifier = from_environment()

    def forward(self, data: Any) -> Any:
        one = number("BATCH") == 1
        answers = self._classifier.classify([torch.from_numpy(picture) for picture in ([data] if one else data)])
        return answers[0] if one else answers


class Everything(_Raw):
    def __init__(self) -> None:
        self._classifier = from_environment()

    def forward(self, data: Any) -> Any:
        one = number("BATCH") == 1
        answers: list[Answer] = self._classifier.classify(list(map(self._classifier.open, [data] if one else data)))
        return answers[0] if one else answers


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", os.environ["PEER_PORT"], "--timeout", "60000"]
    sys.argv += ["--log-level", "error"]
    server = Server()
    batches = {"num": number("WORKERS"), "max_batch_size": number("BATCH")}
    if number("BATCH") > 1:
        batches["max_wait_time"] = max(1, number("WAIT_MS"))
    if number("DECODERS"):
        server.append_worker(Decode, num=number("DECODERS"), env=[{"PEER_THREADS": "1"}] * number("DECODERS"))
        server.append_worker(MosecClassifier, **batches)
    else:
        server.append_worker(Everything, **batches)
    server.run()
