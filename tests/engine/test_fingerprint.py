import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from coatstream.engine.model import fingerprint as module
from coatstream.engine.model import lite0
from coatstream.engine.model.fingerprint import code_digest, file_digest, fingerprint, origin
from coatstream.errors import EngineError
from coatstream.settings.model import ModelSettings
from huggingface_hub import constants

from tests.support.absence import missing
from tests.support.paths import PACKAGE

NAME = "coat_lite_mini.in1k"


def of(weights: str, name: str = NAME) -> str | None:
    return fingerprint(ModelSettings(name=name, weights=weights))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hub_file(cache: Path, name: str, file: str, content: bytes) -> None:
    """As huggingface_hub lays it down: a link to a blob."""
    repository = cache / f"models--timm--{name}"
    for folder in ("refs", "blobs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "blobs" / sha256(content)).write_bytes(content)
    (repository / "snapshots" / "abc" / file).symlink_to(repository / "blobs" / sha256(content))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_random_weights_are_the_same_everywhere() -> None:
    assert of("random") == "random"


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(b"weights")
    (tmp_path / "two.pth").write_bytes(b"weights")

    assert of(str(tmp_path / "one.safetensors")) == of(str(tmp_path / "two.pth")) == f"file:{sha256(b'weights')}"
    (tmp_path / "two.pth").write_bytes(b"others")
    assert of(str(tmp_path / "two.pth")) == f"file:{sha256(b'others')}"


def test_a_file_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert of(str(tmp_path / "none.pth")) is None
    assert file_digest(tmp_path / "none.txt") is None


def test_a_package_is_known_by_its_name_and_its_checkpoint() -> None:
    try:
        checkpoint = lite0.checkpoint_path()
    except EngineError as error:
        missing(str(error))

    assert of(f"package:{lite0.PACKAGE}") == f"package:{lite0.PACKAGE}:{sha256(checkpoint.read_bytes())}"
    assert of("package:other") is None


def test_the_hubs_weights_are_known_by_their_file_in_its_cache(hub: Path) -> None:
    assert of("hub") is None

    hub_file(hub, NAME, "pytorch_model.bin", b"old")
    assert of("hub") == f"hub:{sha256(b'old')}"

    hub_file(hub, NAME, "model.safetensors", b"new")  # preferred by who loads it, too
    assert of("hub") == f"hub:{sha256(b'new')}"


def test_without_a_tag_only_timm_knows_which_weights_are_meant(hub: Path) -> None:
    hub_file(hub, "coat_lite_mini", "model.safetensors", b"of nobody")

    assert of("hub", "coat_lite_mini") is None
    hub_file(hub, NAME, "model.safetensors", b"of its default tag")
    assert of("hub", "coat_lite_mini") == f"hub:{sha256(b'of its default tag')}"
    assert of("hub", "no_such_model") is None


def test_what_a_classifier_is_made_of_are_its_weights_and_labels(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    model = ModelSettings(name=NAME, weights="random", labels=labels)

    assert origin(model) is None
    labels.write_bytes(b"cat")
    assert origin(model) == {"weights": "random", "labels": sha256(b"cat")}
    assert origin(ModelSettings(name=NAME, weights="random")) == {"weights": "random", "labels": "own"}
    assert origin(ModelSettings(name=NAME, weights=str(tmp_path / "none.pth"))) is None


def test_our_own_code_is_part_of_what_an_engine_is_made_by() -> None:
    found = {pattern: list(PACKAGE.glob(pattern)) for pattern in module.CODE}

    assert len(code_digest()) == 64
    assert all(found.values()), "what was moved must not leave the key"
    assert PACKAGE / "engine" / "backends" / "openvino.py" in found["engine/**/*.py"]
    assert PACKAGE / "engine" / "model" / "coat" / "network.py" in found["engine/**/*.py"]


def test_none_of_it_imports_torch_or_timm() -> None:
    code = (
        "import sys\n"
        "from coatstream.settings.model import ModelSettings\n"
        "from coatstream.engine.model.fingerprint import code_digest, fingerprint\n"
        f"fingerprint(ModelSettings()), fingerprint(ModelSettings(weights='package:{lite0.PACKAGE}')), code_digest()\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))\n"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150)

    assert said.stdout.strip() == "[]"
