"""Fingerprints: which weights, labels and code the settings stand for, found out without building the model,
and without importing torch or timm unless a name of the hub has no tag.

They are keys of the cache, so that a worker can start from it. Loads and checks no weights.
"""

import hashlib
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from coatstream.engine.model import lite0
from coatstream.errors import EngineError
from coatstream.settings.model import ModelSettings

HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are preferred

CODE: Final = ("engine/**/*.py", "frames/decoding.py", "frames/geometry.py", "frames/resizing.py", "assets/*.png")


def origin(model: ModelSettings) -> dict[str, str] | None:
    """What a classifier is made of: fingerprints of its weights and labels; None: one cannot be known from here."""
    weights = fingerprint(model)
    labels = file_digest(model.labels) if model.labels else "own"
    return None if weights is None or labels is None else {"weights": weights, "labels": labels}


def fingerprint(model: ModelSettings) -> str | None:
    """Where weights are from and what they are: `file:<sha256>`, `hub:<sha256>`, `package:<name>:<sha256>` or `random`.

    None: it cannot be known from here. There is no such file, or the hub's is not in its local cache under the model's
    own name. Loading the model raises what is wrong.
    """
    match model.weights:
        case "random":
            return "random"  # one seed: the same for the same versions of torch and timm
        case "hub":
            repository = _repository(model.name)
            return _named("hub", cached_weights(repository) if repository else None)
        case package if package.startswith("package:"):
            return _named(package, _package_file(package.removeprefix("package:")))
        case file:
            return _named("file", Path(file).expanduser())


def file_digest(path: Path) -> str | None:
    """sha256 of a file's content; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@cache
def code_digest() -> str:
    """sha256 of our own code that turns weights into an engine, and of the photos that engines are checked on.

    Read from the files: a version number would one day not be counted up.
    """
    with as_file(files("coatstream")) as package:
        found = sorted({file for pattern in CODE for file in _matching(package, pattern)})
        lines = [f"{file.relative_to(package).as_posix()} {file_digest(file)}" for file in found]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _matching(package: Path, pattern: str) -> list[Path]:
    """A pattern that matches nothing would leave that code out of the key in silence: it is a bug."""
    if found := list(package.glob(pattern)):
        return found
    raise AssertionError(f"no file of coatstream matches {pattern}")


def _named(origin: str, path: Path | None) -> str | None:
    digest = file_digest(path) if path is not None else None
    return None if digest is None else f"{origin}:{digest}"


def cached_weights(repository: str) -> Path | None:
    """The file of a repository of the hub in its local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file) for file in HUB_FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _repository(name: str) -> str | None:
    """Where the hub has a model. What a name without a tag means, only timm knows."""
    if "." in name:
        return f"timm/{name}"
    import timm

    default = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return default.hf_hub_id if default else None


def _package_file(package: str) -> Path | None:
    try:
        return lite0.checkpoint_path() if package == lite0.PACKAGE else None
    except EngineError:
        return None
