import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coatstream.engine.backends.compiled import CompiledEngine, CompiledNetwork, inductor, load_compiled_engine
from coatstream.engine.backends.pytorch import load_eager_engine
from coatstream.engine.model.classifier import TimmClassifier, load_classifier
from coatstream.engine.model.coat.network import CoatNetwork
from coatstream.engine.model.labels import numbered_labels
from coatstream.engine.model.network import EagerNetwork
from coatstream.engine.self_check import FP32_TOLERANCE, check_pictures, disagreement, reference
from coatstream.errors import EngineError
from coatstream.frames.frame import Pixels
from coatstream.settings.model import BatchSettings, ModelSettings
from structlog.testing import capture_logs
from torch.fx import GraphModule

from tests.support.absence import missing

SMALL = "test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The main thread classifies here, which sets its share of the cores; what is compiled goes to a folder."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("TORCH_WARM_POOL", "0")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.compiler.reset()


def settings(**values: Any) -> ModelSettings:
    return ModelSettings(**{"name": SMALL, "weights": "random", "device": "cpu", "streams": 2, "threads": 1, **values})


def small() -> TimmClassifier:
    return load_classifier(settings())


def noise(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 160, 160, 3), dtype=np.uint8)


class Tracing:
    """A compiler that leaves graphs as they are: Dynamo and its guards are real, and it takes no time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.sizes += [len(tensor) for tensor in inputs if tensor.dtype == torch.uint8]
        return graph.forward


def engine(compiler: Any, *, embeddings: bool = False, **batch: Any) -> CompiledEngine:
    classifier = small()
    return CompiledEngine(
        classifier,
        EagerNetwork(classifier, embeddings=embeddings),
        precision="fp32",
        model=settings(embeddings=embeddings),
        batch=BatchSettings(**batch),
        compiler=compiler,
    )


def warm(compiler: Any, **batch: Any) -> CompiledEngine:
    """Warmed as the service does it, in one of the threads that classify."""
    made = engine(compiler, **batch)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(made.warm_up).result()
    return made


# ---- torch's own compiler


def tiny() -> TimmClassifier:
    """So small that compiling it takes seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 10)
        )
    whole = small()
    return replace(
        whole,
        module=module.eval().requires_grad_(False),
        spec=replace(whole.spec, height=32, width=32),
        labels=numbered_labels(10),
        split=False,
        num_features=0,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_says_what_eager_says_from_any_thread_and_compiles_nothing_meanwhile(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing("no C++ compiler on this machine (apt-get install g++)")
    classifier, batch = tiny(), BatchSettings(max_size=2)
    pictures = check_pictures(classifier.spec)

    made = load_compiled_engine(classifier, settings(), batch, precision="fp32")
    off = disagreement(made, pictures, reference(classifier, pictures))
    with ThreadPoolExecutor(3) as pool:
        pool.submit(made.warm_up).result()
        counts = [1, 2] * 6
        scores = list(pool.map(lambda count: made.classify(pictures[:count]), counts))

    eager = load_eager_engine(classifier, settings(), batch).classify(pictures[:2])
    assert (made.info.engine, made.info.precision, made.prepared) == ("compile", "fp32", (1, 2))
    assert off.beyond(FP32_TOLERANCE) is None
    assert made.recompilations == 0
    for count, given in zip(counts, scores, strict=True):
        assert given.indices.tolist() == eager.indices[:count].tolist()
    assert any((tmp_path / "kept").rglob("*.so"))


@pytest.mark.slow
def test_without_a_cpp_compiler_one_line_says_what_to_install() -> None:
    made = engine(inductor, max_size=1)

    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(EngineError) as caught:
        made.warm_up()

    assert str(caught.value) == (
        "model.engine = compile needs a C++ compiler, and there is none: install g++, or name yours in CXX"
    )


# ---- one graph per prepared size


@pytest.mark.slow
def test_every_prepared_size_is_compiled_once_and_said() -> None:
    compiler = Tracing()

    with capture_logs() as lines:
        made = warm(compiler, max_size=6)
        made.warm_up()

    assert made.prepared == (1, 2, 4, 6)
    assert compiler.sizes == [1, 2, 4, 6]
    said = [(line["batch"], line["number"], line["of"]) for line in lines if line["event"] == "compiling"]
    assert said == [(1, 1, 4), (2, 2, 4), (4, 3, 4), (6, 4, 4)]
    assert [line["batch"] for line in lines if line["event"] == "compiled"] == [1, 2, 4, 6]


def test_what_the_self_check_ran_is_not_compiled_again() -> None:
    compiler = Tracing()
    made = engine(compiler, max_size=2)

    made.classify(noise(1))
    made.warm_up()

    assert compiler.sizes == [1, 2]


class MeanColours(torch.nn.Module):
    """The smallest network there is."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (pixels.float().mean(dim=(1, 2)),)


@torch.inference_mode()
def test_more_sizes_than_dynamo_keeps_by_default_all_have_their_graph() -> None:
    sizes, compiler = tuple(range(1, 13)), Tracing()
    network = CompiledNetwork(MeanColours(), sizes, compiler=compiler)

    first = [network(torch.from_numpy(noise(size)))[0] for size in sizes]
    network.seal()
    again = [network(torch.from_numpy(noise(size)))[0] for size in sizes]

    assert compiler.sizes == list(sizes)
    assert network.recompilations == 0
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@torch.inference_mode()
def test_a_size_that_two_threads_want_at_once_is_compiled_once() -> None:
    compiler = Tracing()
    network = CompiledNetwork(MeanColours(), (3,), compiler=compiler)
    meet = threading.Barrier(4, timeout=10)

    def run(pixels: Pixels) -> bytes:
        meet.wait()
        with torch.inference_mode():
            (colours,) = network(torch.from_numpy(pixels))
        return bytes(colours.numpy().tobytes())

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(run, [noise(3)] * 4))

    assert compiler.sizes == [3]
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_batches_of_any_size_from_any_thread_find_their_graph() -> None:
    made = warm(Tracing(), max_size=4)
    pixels, eager = noise(4), load_eager_engine(small(), settings(), BatchSettings(max_size=4))
    wanted = eager.classify(pixels)

    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda count: made.classify(pixels[:count]), [1, 2, 3, 4] * 4))

    assert made.recompilations == 0
    for given in scores:
        assert given.indices.tolist() == wanted.indices[: len(given.indices)].tolist()
        assert np.allclose(given.values, wanted.values[: len(given.values)], atol=1e-6)


def test_a_lone_picture_cut_from_anywhere_fits_the_graph_of_one() -> None:
    made = warm(Tracing(), max_size=2)

    for lone in (noise(5)[::2][:1], noise(3)[1:2], np.asfortranarray(noise(1))):
        made.classify(lone)

    assert made.recompilations == 0


# ---- a recompilation


def test_a_recompilation_while_serving_is_counted_said_and_breaks_nothing() -> None:
    compiler = Tracing()
    made, pixels = warm(compiler, max_size=1), noise(1)
    made.classify(pixels)
    torch.set_num_threads(3)  # a guard of Dynamo's, and the engine has set this thread's share of the cores before

    with capture_logs() as lines:
        scores = [made.classify(pixels) for _ in range(3)]

    assert made.recompilations == 1
    assert compiler.sizes == [1]
    assert [line["log_level"] for line in lines] == ["warning"]
    wanted = load_eager_engine(small(), settings(), BatchSettings()).classify(pixels)
    assert all(np.allclose(given.values, wanted.values, atol=1e-6) for given in scores)


def test_one_engines_recompilations_are_not_anothers() -> None:
    one, other = warm(Tracing(), max_size=1), warm(Tracing(), max_size=1)
    one.classify(noise(1))
    torch.set_num_threads(3)

    one.classify(noise(1))

    assert (one.recompilations, other.recompilations) == (1, 0)


def test_other_engines_have_none() -> None:
    assert load_eager_engine(small(), settings(), BatchSettings()).recompilations == 0


def test_a_compiler_that_fails_is_one_line() -> None:
    def failing(graph: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise ValueError("no such instruction\nand a second line")

    with pytest.raises(EngineError) as caught:
        engine(failing, max_size=2).warm_up()

    message = str(caught.value)
    assert message.startswith("torch.compile fails for a batch of 1: ")
    assert "no such instruction" in message
    assert "\n" not in message


# ---- what is compiled, and where it is kept


@pytest.mark.parametrize(("name", "network"), [("coat_lite_mini.in1k", CoatNetwork), (SMALL, EagerNetwork)])
def test_a_coat_is_compiled_fused_and_any_other_model_as_it_is(name: str, network: type[torch.nn.Module]) -> None:
    model = settings(name=name)

    made = load_compiled_engine(load_classifier(model), model, BatchSettings(), precision="bf16")

    assert isinstance(made._compiled.network, network)


@pytest.mark.parametrize("before", [None, "torchs own"])
def test_graphs_are_kept_in_the_models_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if before is not None:
        torchs_own = torch._inductor.runtime.cache_dir_utils.default_cache_dir()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", torchs_own)

    load_compiled_engine(small(), settings(cache=tmp_path / "cache"), BatchSettings(), precision="fp32")

    folder = tmp_path / "cache" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere/else")

    load_compiled_engine(small(), settings(cache=tmp_path / "cache"), BatchSettings(), precision="fp32")

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere/else"
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_said_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()

    with capture_logs() as lines:
        load_compiled_engine(small(), settings(cache=tmp_path / "file"), BatchSettings(), precision="fp32")

    assert [line["event"] for line in lines] == ["compiled graphs are not kept"]
    assert str(tmp_path) not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
