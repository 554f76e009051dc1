"""Ray Serve: replicas behind its HTTP proxy, batches by @serve.batch."""

import os
import signal
import threading
from types import FrameType

import ray
from ray import serve
from starlette.requests import Request

from bench.peers.naive_classifier import Answer, from_environment, number


@serve.deployment(
    num_replicas=number("WORKERS"),
    max_ongoing_requests=64,  # more than are ever in flight: nothing but batching holds a request back
    ray_actor_options={"num_cpus": 0.01},  # or Ray sets OMP_NUM_THREADS itself, and counts cores that its proxy needs
)
class RayClassifier:
    def __init__(self) -> None:
        self._classifier = from_environment()

    @serve.batch(max_batch_size=number("BATCH"), batch_wait_timeout_s=number("WAIT_MS") / 1000)
    async def _classify(self, pictures: list[bytes]) -> list[Answer]:
        return self._classifier.classify(list(map(self._classifier.open, pictures)))

    async def __call__(self, request: Request) -> Answer:
        answer: Answer = await self._classify(await request.body())
        return answer


if __name__ == "__main__":
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)
    ray.init(
        include_dashboard=False,
        object_store_memory=128 * 1024**2,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=os.environ["PEER_FOLDER"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": number("PORT")})
    serve.run(RayClassifier.bind())  # type: ignore[attr-defined]  # what the decorator adds
    ended.wait()
    serve.shutdown()
    ray.shutdown()
