"""The engine that runs a network in OpenVINO, on a CPU.

A network is converted once and kept in the cache, with all that a start needs: a later one imports neither timm nor
builds the torch model. Which network is converted, and whether it agrees with eager float32, is decided elsewhere.

What is set here, and why:
- one compiled model for each batch size: one for all sizes is slower;
- a stream of few threads needs no large batches (`coatstream bench engine --engines openvino:bf16` shows both layouts
  at each size), and 3 pictures run as 2 and 1 instead of as 4 with a black one;
- threads are not bound to cores: no slower, and they can step aside for decoding, Redis and neighbours.
"""

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue

from coatstream.engine.cache import Cache, Key
from coatstream.engine.model.fingerprint import code_digest, origin
from coatstream.engine.protocol import NotHere, cpu_shares, padded, prepared_size
from coatstream.engine.self_check import ReferenceScores
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec, Label, Pixels, Scores
from coatstream.frames.model import ModelInfo
from coatstream.settings.model import BatchSettings, ModelSettings

if TYPE_CHECKING:  # they import torch and timm, and a start from the cache does without
    from torch import nn

    from coatstream.engine.model.classifier import TimmClassifier

Floats = NDArray[np.float32]

_KIND: Final = "openvino"
_MODEL, _WEIGHTS, _FACTS, _REFERENCE = "model.xml", "model.bin", "facts.json", "reference.npz"
_HINTS: Final = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_SHAPES: Final = (1, 2, 4, 8)
_FEW_THREADS: Final = 2  # streams of so few gain nothing from the largest shape


class Facts(BaseModel):
    """What is known of the classifier, as it stands beside the converted network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weights: str
    num_features: int
    spec: InputSpec
    labels: tuple[Label, ...]


def load_cached(model: ModelSettings, batch: BatchSettings, cache: Cache) -> "OpenVinoEngine | None":
    """The engine from an earlier conversion; None where there is none for this model, these weights and versions.

    Raises EngineError where OpenVINO is missing or cannot run it.
    """
    openvino = _library(model)
    if (key := _key(model, origin(model))) is None or (files := cache.load(_KIND, key)) is None:
        return None
    try:
        network = openvino.Core().read_model(files[_MODEL], files[_WEIGHTS])
        facts = Facts.model_validate_json(files[_FACTS])
        reference = ReferenceScores(**np.load(io.BytesIO(files[_REFERENCE]), allow_pickle=False))
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        BadZipFile,
    ) as error:  # files as they were written, but not by this code
        cache.discard(_KIND, key, f"it cannot be read: {_why(error)}")
        return None
    return OpenVinoEngine(network, facts, reference, model=model, batch=batch)


def convert(
    classifier: "TimmClassifier",
    network: "nn.Module",
    reference: ReferenceScores,
    *,
    model: ModelSettings,
    batch: BatchSettings,
    cache: Cache,
) -> "OpenVinoEngine":
    """The engine that runs this network of the classifier, kept in the cache for the next start.

    reference  the classifier's results for the check pictures: kept beside it, and given back as `engine.reference`

    Raises EngineError where OpenVINO is missing or cannot run it.
    """
    openvino = _library(model)
    converted = _converted(openvino, network, classifier)
    facts = Facts(
        name=classifier.name,
        weights=classifier.weights,
        num_features=classifier.num_features,
        spec=classifier.spec,
        labels=classifier.labels,
    )
    if (key := _key(model, classifier.origin)) is not None:
        cache.store(_KIND, key, partial(_write, openvino, converted, facts, reference))
    return OpenVinoEngine(converted, facts, reference, model=model, batch=batch)


class OpenVinoEngine:
    """The Engine protocol over a converted network.

    A model is compiled for each of a few batch sizes, when it is first needed; larger batches run in pieces. Each has
    a request for each stream: a thread that classifies takes a free one.
    """

    def __init__(
        self, network: Any, facts: Facts, reference: ReferenceScores, *, model: ModelSettings, batch: BatchSettings
    ) -> None:
        """`network` is an openvino.Model: uint8 [?, height, width, 3] -> logits and, with embeddings, pooled features.

        `model` names one precision. Raises EngineError.
        """
        self._core = _library(model).Core()
        self._precision = model.precision
        self.info = ModelInfo(facts.name, facts.weights, "openvino", self._precision, "cpu", facts.num_features)
        self.spec = facts.spec
        self.labels = facts.labels
        self.reference = reference
        self._facts = facts
        self.streams, self.threads = cpu_shares(model.streams, model.threads)
        self.prepared = batch.prepared or tuple(range(1, batch.max_size + 1))
        self._pieces = not batch.prepared  # batches are padded to the sizes that the user lists
        self._shapes = batch.prepared or _shapes(batch.max_size, self.threads)
        self._top_k = min(model.top_k, len(facts.labels))
        self._network = network  # None once every shape is compiled: it holds all weights
        self._requests: dict[int, LifoQueue[Any]] = {}  # shape -> those of its requests that are free
        self._compiling = threading.Lock()

    @property
    def source(self) -> tuple[Any, Facts, ReferenceScores]:
        """What another one can be made of, in another precision or layout; until every shape is compiled."""
        return self._network, self._facts, self.reference

    @property
    def recompilations(self) -> int:
        """Models that were compiled while it served: none, warm_up compiles them all."""
        return 0

    def warm_up(self) -> None:
        """Compile every shape and run each request once, so that its memory is there. Raises EngineError."""
        for shape in self._shapes:
            black = np.zeros((shape, self.spec.height, self.spec.width, 3), np.uint8)
            for _ in range(self.streams):
                self._run(black, shape)

    def classify(self, pixels: Pixels) -> Scores:
        """uint8 [n, height, width, 3] RGB at the spec's size -> scores of the same n pictures, in order."""
        pieces = [self._run(piece, shape) for piece, shape in self._cut(pixels)]
        logits, *pooled = pieces[0] if len(pieces) == 1 else map(np.concatenate, zip(*pieces, strict=True))
        indices, values = best(logits, self._top_k)
        return Scores(indices, values, pooled[0] if pooled else None)

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """Unpooled features are the eager engine's alone: raises EngineError."""
        raise EngineError("unpooled features need model.engine = eager, and this is openvino")

    def _cut(self, pixels: Pixels) -> Iterator[tuple[Pixels, int]]:
        """The batch in pieces, each with the shape that it runs in: the largest that it fills, else the smallest."""
        if not self._pieces:
            yield pixels, prepared_size(len(pixels), self.prepared)
            return
        start = 0
        while start < len(pixels):
            shape = max(shape for shape in self._shapes if shape <= len(pixels) - start)  # 1 is always one of them
            yield pixels[start : start + shape], shape
            start += shape

    def _run(self, pixels: Pixels, shape: int) -> list[Floats]:
        """Outputs for these pictures, as many as `shape` or fewer."""
        free = self._requests.get(shape) or self._compiled(shape)
        request = free.get()  # at most `streams` threads classify, so there is one
        try:
            request.infer([padded(pixels, shape)], share_inputs=True)
            return [request.get_output_tensor(n).data[: len(pixels)].copy() for n in range(len(request.output_tensors))]
        finally:
            free.put(request)

    def _compiled(self, shape: int) -> "LifoQueue[Any]":
        """Raises EngineError."""
        with self._compiling:
            if (found := self._requests.get(shape)) is not None:
                return found
            try:
                requests = self._requests_for(shape)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO cannot run {self.info.name} {self._precision}: {_why(error)}") from None
            if len(self._requests) + 1 == len(self._shapes):
                self._network = None
            self._requests[shape] = requests
            return requests

    def _requests_for(self, shape: int) -> "LifoQueue[Any]":
        """Raises RuntimeError, and EngineError where the processor does not have the precision."""
        network = self._network.clone()
        network.reshape([shape, self.spec.height, self.spec.width, 3])
        properties = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "NUM_STREAMS": str(self.streams),
            "INFERENCE_NUM_THREADS": self.streams * self.threads,
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,  # `streams` and `threads` count what the system calls a processor
        }
        compiled = self._core.compile_model(network, "CPU", properties)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != _HINTS[self._precision]:
            raise EngineError(f"this processor does not compute in {self._precision}: OpenVINO would take {used}")
        if any(output.partial_shape[0] != shape for output in compiled.outputs):
            raise EngineError(f"{self.info.name} does not run in batches of {shape} in OpenVINO: it fixes their size")
        requests: LifoQueue[Any] = LifoQueue()
        for _ in range(self.streams):
            requests.put(compiled.create_infer_request())
        return requests


def best(logits: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """The `count` most probable classes of each row and their probabilities, the best first; ties as they are numbered.

    In float32 whatever the network computes in: bfloat16 has two and a half digits.
    """
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    some = np.sort(np.argpartition(logits, -count, axis=1)[:, -count:], axis=1)
    order = np.argsort(-np.take_along_axis(logits, some, axis=1), axis=1, kind="stable")
    indices = np.take_along_axis(some, order, axis=1)
    values = np.take_along_axis(exponents, indices, axis=1) / exponents.sum(axis=1, keepdims=True)
    return indices, values


# ---- what it runs on


def _library(model: ModelSettings) -> Any:
    """The package openvino. Raises EngineError where it is missing, or a device is wanted that we run nothing on.

    Its tools report every import and conversion to a web service, from a process that they fork for it, and write into
    the home folder, unless openvino_telemetry cannot be imported: then they take their own stub for it. So that is what
    the import system must know before the first import.
    """
    if model.device not in ("auto", "cpu"):
        raise NotHere(f"the engine openvino runs on the CPU alone, not on {model.device}")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # typeshed knows no None there
    try:
        import openvino
    except ModuleNotFoundError:
        raise NotHere("the engine openvino needs a library: pip install coatstream[openvino]") from None
    except ImportError as error:
        raise NotHere(f"OpenVINO cannot be imported: {_why(error)}") from None
    return openvino


def _shapes(max_size: int, threads: int) -> tuple[int, ...]:
    most = _SHAPES[-2] if threads <= _FEW_THREADS else _SHAPES[-1]
    return tuple(shape for shape in _SHAPES if shape <= min(most, max_size))


# ---- converting and keeping


def _key(model: ModelSettings, made_of: Mapping[str, str] | None) -> Key | None:
    """All that a converted network and what is kept beside it depend on; None where the weights are not known.

    Not the precision: weights are kept in float32, and OpenVINO rounds them when it compiles.
    """
    if made_of is None:
        return None
    return {
        **made_of,
        "model": model.name,
        "embeddings": model.embeddings,
        "code": code_digest(),
        "versions": versions(),
    }


def versions() -> dict[str, JsonValue]:
    """Of the libraries between weights and an engine, without importing them."""
    return {name: _version(name) for name in ("openvino", "torch", "timm")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _converted(openvino: Any, network: "nn.Module", classifier: "TimmClassifier") -> Any:
    """An openvino.Model for any number of pictures. Raises EngineError.

    torch's tracer would run the network three times more and build another one, to check itself: most of the time, and
    the self-check checks more.
    """
    import torch
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = (classifier.spec.height, classifier.spec.width, 3)
    # Two pictures: a network that is traced with one may take its batch axis for a constant
    example = torch.zeros((2, *size), dtype=torch.uint8)
    with warnings.catch_warnings(), _root_logger_kept(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of torch's tracer, which the converter still uses, and of what it meets
        try:
            traced = TorchScriptPythonDecoder(
                network.eval(), example_input=example, trace_kwargs={"check_trace": False}
            )
            return openvino.convert_model(traced, example_input=example, input=[([-1, *size], openvino.Type.u8)])
        except Exception as error:  # two compilers at work on any model
            cause = error.__cause__ or error  # the tracer's own error is wrapped in advice
            raise NotHere(f"OpenVINO cannot convert {classifier.name}: {_why(cause)}") from None


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """The converter sets the root logger to ERROR, and only a conversion that succeeds sets it back."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _write(openvino: Any, network: Any, facts: Facts, reference: ReferenceScores, folder: Path) -> None:
    """Raises OSError."""
    try:
        openvino.save_model(network, folder / _MODEL, compress_to_fp16=False)
        openvino.Core().read_model(folder / _MODEL)  # finds a full disk, which nothing else does
    except RuntimeError as error:
        raise OSError(_why(error)) from None
    (folder / _FACTS).write_text(facts.model_dump_json(), "utf-8")
    np.savez(folder / _REFERENCE, **asdict(reference))


def _why(error: BaseException) -> str:
    """An error's message, for one line of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
