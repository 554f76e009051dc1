"""The engine that runs a network in PyTorch, on a CPU, a CUDA or an Apple GPU.

Which network, in which precision, is decided elsewhere; pictures arrive at the model's size.
"""

import threading
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coatstream.engine.backends.staging import callers, staging
from coatstream.engine.cores import use_cores
from coatstream.engine.model.network import EagerNetwork
from coatstream.engine.protocol import cpu_shares, power_sizes, prepared_size
from coatstream.errors import EngineError, first_line
from coatstream.frames.frame import Pixels, Scores
from coatstream.frames.model import ModelInfo
from coatstream.settings.model import BatchSettings, ModelSettings

if TYPE_CHECKING:  # it imports timm, and a start from the cache does without
    from coatstream.engine.model.classifier import TimmClassifier

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The Engine protocol over a network.

    The network is only read, so `streams` threads may classify at once, each on `threads` cores.
    """

    def __init__(
        self,
        classifier: "TimmClassifier",
        network: nn.Module,
        *,
        engine: str,
        precision: str,
        model: ModelSettings,
        batch: BatchSettings,
    ) -> None:
        """Moves the network to `model.device`. Raises EngineError where it has no room there, or there is none."""
        self._device = device_of(model.device)
        self.info = ModelInfo(
            classifier.name, classifier.weights, engine, precision, str(self._device), classifier.num_features
        )
        self.spec = classifier.spec
        self.labels = classifier.labels
        self.prepared = batch.prepared or _default_sizes(self._device, batch.max_size)
        self.streams, self.threads = shares(self._device, model.streams, model.threads)
        self._network = self._placed(network)
        self._staging = staging(self._device, (self.prepared[-1], self.spec.height, self.spec.width, 3))
        self._thread = threading.local()  # .ready: this thread's share of the cores is set
        self._top_k = min(model.top_k, len(self.labels))

    @property
    def recompilations(self) -> int:
        """How often the network was compiled while it served, which it never should be."""
        return 0

    def _placed(self, network: nn.Module) -> nn.Module:
        if self._device.type == "cuda":
            _keep_float32_exact()
            if self.info.precision != "fp32":  # convolutions on tensor cores want it so
                network = network.to(memory_format=torch.channels_last)
        try:
            return network.to(self._device)
        except RuntimeError as error:
            raise EngineError(f"{self.info.name} does not fit on {self._device}: {first_line(error)}") from None

    def warm_up(self) -> None:
        """Run the prepared sizes once: all on a GPU, where each selects its kernels, the smallest and largest on a CPU.

        Raises EngineError, above all where the largest batch does not fit in memory.
        """
        sizes = {self.prepared[0], self.prepared[-1]} if self._device.type == "cpu" else self.prepared
        for size in sorted(sizes):
            self.try_out(size)

    def try_out(self, size: int) -> None:
        """Run one batch of black pictures. Raises EngineError."""
        try:
            self.classify(np.zeros((size, self.spec.height, self.spec.width, 3), np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"{self._cannot_run(size)}: {first_line(error)}; {self._instead(size)}") from None

    def _cannot_run(self, size: int) -> str:
        precision = "" if self.info.precision == "fp32" else f"in {self.info.precision} "
        return f"{self.info.name} cannot run a batch of {size} {precision}on {self._device}"

    def _instead(self, size: int) -> str:
        if size > 1:
            return "choose a smaller batch.max_size or model"
        precision = "" if self.info.precision == "fp32" else "precision, "
        return f"choose another {precision}device or model"

    @torch.inference_mode()
    def classify(self, pixels: Pixels) -> Scores:
        """uint8 [n, height, width, 3] RGB at the spec's size -> scores of the same n pictures, in order."""
        self._claim_cores()
        size = prepared_size(len(pixels), self.prepared)
        indices, values, *pooled = self._staging.run(self._best, pixels, size)
        return Scores(indices, values, pooled[0] if pooled else None)

    def _best(self, batch: Tensor) -> tuple[Tensor, ...]:
        logits, *pooled = self._network(batch)
        values, indices = logits.softmax(dim=1).topk(self._top_k, dim=1)
        return indices, values, *pooled

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """uint8 [n, height, width, 3] RGB -> float32, the unpooled features before the head. Of the eager engine only.

        Their shape is the model's: [n, tokens, features] for CoaT (50 x 512 for coat_lite_mini), [n, features, rows,
        columns] for a convolutional one.
        """
        network = self._network
        if not isinstance(network, EagerNetwork):
            raise EngineError(f"unpooled features need model.engine = eager, and this is {self.info.engine}")

        def features(batch: Tensor) -> tuple[Tensor]:
            unpooled: Any = network.features(batch)
            if not isinstance(unpooled, Tensor):
                raise EngineError(f"{self.info.name} has no single unpooled feature map")
            return (unpooled.float(),)

        self._claim_cores()
        return self._staging.run(features, pixels, prepared_size(len(pixels), self.prepared))[0]

    def _claim_cores(self) -> None:
        if self._device.type == "cpu" and not getattr(self._thread, "ready", False):
            use_cores(self.threads)
            self._thread.ready = True


def load_eager_engine(
    classifier: "TimmClassifier", model: ModelSettings, batch: BatchSettings, *, precision: str = "fp32"
) -> TorchEngine:
    """timm's module as it is. Raises EngineError."""
    network = eager_network(classifier, model, precision, device_of(model.device))
    return TorchEngine(classifier, network, engine="eager", precision=precision, model=model, batch=batch)


def eager_network(
    classifier: "TimmClassifier", model: ModelSettings, precision: str, device: torch.device
) -> EagerNetwork:
    """In a GPU's memory a copy runs: the classifier's own module stays where the reference needs it, on the CPU."""
    if device.type != "cpu" and precision == "fp32":  # other precisions copy it in any case
        classifier = replace(classifier, module=deepcopy(classifier.module))
    return EagerNetwork(classifier, dtype=DTYPES[precision], embeddings=model.embeddings)


def device_of(name: str) -> torch.device:
    """The device that `model.device` names. Raises EngineError where the machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise EngineError(f"there is no device {name} here; model.device = auto or cpu will do")
    return device


def _default_sizes(device: torch.device, max_size: int) -> tuple[int, ...]:
    """On a CPU each size runs as it is, since padding costs what a picture costs; a GPU gets powers of two."""
    return tuple(range(1, max_size + 1)) if device.type == "cpu" else power_sizes(max_size)


def shares(device: torch.device, streams: int, threads: int) -> tuple[int, int]:
    """(batches at once, cores of one batch); 0 means: choose."""
    return cpu_shares(streams, threads) if device.type == "cpu" else (streams or callers(device), threads or 1)


def _keep_float32_exact() -> None:
    """Keep 23 bits of float32 on tensor cores; torch's default for convolutions is 10 (TF32). Batches have few sizes,
    so trying out which kernel is fastest pays. Both are settings of the whole process.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
