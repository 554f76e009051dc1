"""LitServe: pictures as forms, batches of its own, one API process in front of the workers."""

from typing import Any

import litserve
from fastapi import Request
from torch import Tensor

from bench.peers.naive_classifier import Answer, from_environment, number


class LitServeClassifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = from_environment()

    def decode_request(self, request: Request) -> Tensor:
        picture: Any = request["image"]
        return self.classifier.open(picture.file.read())

    def batch(self, inputs: list[Tensor]) -> list[Tensor]:
        return inputs  # classify stacks

    def predict(self, x: Any) -> list[Answer]:
        return self.classifier.classify(x if isinstance(x, list) else [x])

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Any) -> Any:
        return output[0] if number("BATCH") == 1 else output


if __name__ == "__main__":
    api = LitServeClassifier(max_batch_size=number("BATCH"), batch_timeout=number("WAIT_MS") / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=number("WORKERS"), timeout=60)
    server.run(host="127.0.0.1", port=number("PORT"), log_level="error", generate_client_file=False)
