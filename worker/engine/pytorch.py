"""The PyTorch engine: any timm classifier, eager, in float32, on a CPU, CUDA or Apple GPU.

Pictures arrive at the model's size. Where weights come from is `weights`' business, names of classes are `labels`'.
"""

import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from config.settings import BatchSettings, ModelSettings
from worker.cores import usable_cores, use_cores
from worker.engine import ModelInfo, power_sizes, prepared_size
from worker.engine.labels import imagenet_labels, labels_from_file
from worker.engine.weights import LoadedModel, load_model
from worker.errors import EngineError
from worker.frames import InputSpec, Label, Pixels, Scores
from worker.image import INTERPOLATIONS

_MAX_STREAMS: Final = 4


def load_pytorch_engine(model: ModelSettings, batch: BatchSettings) -> "PyTorchEngine":
    """The engine that the settings ask for, its weights on the device, not yet warm. Raises EngineError."""
    device = _device(model.device)
    loaded = load_model(model)
    spec = input_spec(loaded.module, model.name)
    count = int(loaded.module.num_classes)  # type: ignore[arg-type]  # nn.Module's attributes are untyped
    labels = labels_from_file(model.labels, count) if model.labels else imagenet_labels(count)
    head = _head(loaded.module, spec, model)
    try:
        loaded.module.to(device)
    except RuntimeError as error:
        raise EngineError(f"{model.name} does not fit on {device}: {_first_line(error)}") from None
    streams, threads = _shares(device, model.streams, model.threads)
    sizes = batch.prepared or _default_sizes(device, batch.max_size)
    return PyTorchEngine(
        loaded,
        device,
        spec=spec,
        labels=labels,
        head=head,
        prepared=sizes,
        streams=streams,
        threads=threads,
        model=model,
    )


@dataclass(frozen=True, slots=True)
class _Head:
    """How a model's last part is reached. `split`: forward_features and forward_head together are the model."""

    split: bool
    num_features: int


class PyTorchEngine:
    """The Engine protocol over an eager timm module.

    Owned by nobody: the module is only read, so `streams` threads may classify at once.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device,
        *,
        spec: InputSpec,
        labels: tuple[Label, ...],
        head: _Head,
        prepared: tuple[int, ...],
        streams: int,
        threads: int,
        model: ModelSettings,
    ) -> None:
        self.info = ModelInfo(model.name, loaded.weights, "eager", str(device), head.num_features)
        self.spec = spec
        self.labels = labels
        self.prepared = prepared
        self.streams = streams
        self._module: Any = loaded.module
        self._device = device
        self._split = head.split
        self._threads = threads
        self._thread = threading.local()  # .ready: this thread's share of the cores is set
        self._top_k = min(model.top_k, len(labels))
        self._embeddings = model.embeddings
        self._mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def warm_up(self) -> None:
        """Run the prepared sizes once: all on a GPU, where each selects its kernels, the smallest and largest on a CPU.

        Raises EngineError, above all where the largest batch does not fit in memory.
        """
        sizes = {self.prepared[0], self.prepared[-1]} if self._device.type == "cpu" else self.prepared
        for size in sorted(sizes):
            try:
                self.classify(np.zeros((size, self.spec.height, self.spec.width, 3), np.uint8))
            except (RuntimeError, MemoryError) as error:
                advice = "choose a smaller batch.max_size or model" if size > 1 else "choose another device or model"
                message = f"{self.info.name} cannot run a batch of {size} on {self._device}"
                raise EngineError(f"{message}: {_first_line(error)}; {advice}") from None

    @torch.inference_mode()
    def classify(self, pixels: Pixels) -> Scores:
        """uint8 [n, height, width, 3] RGB at the spec's size -> scores of the same n pictures, in order."""
        self._claim_cores()
        logits, pooled = self._forward(self._normalised(pixels))
        values, indices = logits.float().softmax(dim=1).topk(self._top_k, dim=1)
        count = len(pixels)
        return Scores(
            indices[:count].cpu().numpy(),
            values[:count].cpu().numpy(),
            None if pooled is None else pooled[:count].float().cpu().numpy(),
        )

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """uint8 [n, height, width, 3] RGB -> float32, the unpooled features before the head.

        Their shape is the model's: [n, tokens, features] for CoaT (50 x 512 for coat_lite_mini), [n, features, rows,
        columns] for a convolutional one.
        """
        self._claim_cores()
        unpooled = self._module.forward_features(self._normalised(pixels))
        if not isinstance(unpooled, Tensor):
            raise EngineError(f"{self.info.name} has no single unpooled feature map")
        return unpooled[: len(pixels)].float().cpu().numpy()

    def _claim_cores(self) -> None:
        if self._device.type == "cpu" and not getattr(self._thread, "ready", False):
            use_cores(self._threads)
            self._thread.ready = True

    def _normalised(self, pixels: Pixels) -> Tensor:
        """float32 [size, 3, height, width] on the device, padded to a prepared size; bytes travel, not floats."""
        batch = torch.from_numpy(_padded(pixels, prepared_size(len(pixels), self.prepared))).to(self._device)
        planes = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return planes.sub_(self._mean).div_(self._std)

    def _forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits, pooled pre-logits or None) of one pass: the head runs twice, and it is the cheap part."""
        if not self._split:
            return self._module(batch), None
        unpooled = self._module.forward_features(batch)
        logits = self._module.forward_head(unpooled)
        if not self._embeddings:
            return logits, None
        return logits, self._module.forward_head(unpooled, pre_logits=True).flatten(1)


def input_spec(module: nn.Module, name: str) -> InputSpec:
    """How the model wants its pictures, from its own data config. Raises EngineError for what `prepare` cannot do."""
    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    if channels != 3 or config["interpolation"] not in INTERPOLATIONS:
        what = f"{channels} channels, {config['interpolation']} interpolation"
        raise EngineError(f"{name} wants pictures with {what}: only 3 channels, bicubic or bilinear are supported")
    return InputSpec(
        height=height,
        width=width,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@torch.inference_mode()
def _head(module: Any, spec: InputSpec, model: ModelSettings) -> _Head:
    """Try on one picture whether features and head, called apart, give the model's own logits.

    They do in nearly all of timm. Where not, the model still classifies; only embeddings are refused (EngineError).
    """
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, spec.height, spec.width, generator=generator)
    try:
        logits = module(picture)
    except Exception as error:
        raise EngineError(
            f"{model.name} does not run on a {spec.width} x {spec.height} picture: {_first_line(error)}"
        ) from None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise EngineError(f"{model.name} is no classifier of pictures: it does not give one row of logits for each")
    try:
        unpooled = module.forward_features(picture)
        split = torch.allclose(module.forward_head(unpooled), logits, rtol=1e-4, atol=1e-4)
        num_features = module.forward_head(unpooled, pre_logits=True).flatten(1).shape[1]
    except Exception:  # no such methods, or others than timm's: then the model runs in one piece
        split, num_features = False, 0
    if model.embeddings and not split:
        raise EngineError(f"{model.name} gives no pooled features: switch model.embeddings off")
    return _Head(split, num_features if split else 0)


def _device(name: str) -> torch.device:
    """Raises EngineError where the machine has no such device."""
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


def _shares(device: torch.device, streams: int, threads: int) -> tuple[int, int]:
    """(batches at once, cores of one batch); 0 means: choose.

    Two streams of one thread against one of two, eager coat_lite_mini on 2 cores (medians of three, images/s):
    batch 1: 25.6 and 13.5, batch 4: 23.2 and 18.7, batch 8: 22.7 and 17.7; with less CPU time an image, too. Hence as
    many streams as there are cores, up to four: each keeps a batch of its own in memory and makes batches smaller.
    """
    if device.type != "cpu":
        return streams or 1, threads or 1
    cores = usable_cores()
    streams = streams or max(1, min(cores // (threads or 1), _MAX_STREAMS))
    return streams, threads or max(1, cores // streams)


def _padded(pixels: Pixels, size: int) -> Pixels:
    """The pictures, and black ones up to `size`."""
    if len(pixels) == size:
        return np.require(pixels, requirements=("C", "W"))
    padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
