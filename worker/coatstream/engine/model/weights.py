"""Weights: from a name in the settings to a timm classifier, on the CPU, ready for inference.

Never unpickles anything but tensors, never waits long for a hub that does not answer, and never writes to stderr.
"""

import argparse
import difflib
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import timm
import torch
from torch import Tensor, nn

from coatstream.engine.model import lite0
from coatstream.engine.model.fingerprint import HUB_FILES, cached_weights
from coatstream.errors import EngineError
from coatstream.settings.model import ModelSettings

State = dict[str, Tensor]

_PROBE_TIMEOUT: Final = 3.0
_FILE_TYPES: Final = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


class HubUnreachable(EngineError):
    """The weights are not in the local cache, and the model hub does not answer."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A classifier in eval mode on the CPU, and where its weights are from, in the words of `ModelInfo.weights`."""

    module: nn.Module
    weights: str


def load_model(settings: ModelSettings) -> LoadedModel:
    """The timm classifier `settings.name` with the weights that `settings.weights` names. Raises EngineError."""
    check_name(settings.name)
    match settings.weights:
        case "random":
            module, weights = _random(settings.name), "random"
        case "hub":
            module, weights = _build(settings.name, _hub_state(settings.name), "the model hub"), "hub"
        case package if package.startswith("package:"):
            module, weights = _from_package(settings.name, package.removeprefix("package:")), package
        case file:
            module, weights = _from_file(settings.name, Path(file).expanduser())
    if not getattr(module, "num_classes", 0):
        raise EngineError(
            f"{settings.name} is no classifier (it has no classes): give a model that is, or a fine-tuned file"
        )
    return LoadedModel(module.eval().requires_grad_(False), weights)


def check_name(name: str) -> None:
    """Raises EngineError with the nearest names, where timm has no such model or no such pretrained tag."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and (not tag or name in _tagged(architecture)):
        return
    known = (
        _tagged(architecture)
        if timm.is_model(architecture)
        else [*timm.list_models(), *timm.list_models(pretrained=True)]
    )
    near = difflib.get_close_matches(name, known, n=3) or known[:3] * timm.is_model(architecture)
    hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
    raise EngineError(f"timm knows no model {name!r}: {hint}")


def _tagged(architecture: str) -> list[str]:
    return list(timm.list_models(f"{architecture}.*", pretrained=True))


# ---- building


def _random(name: str) -> nn.Module:
    """The same random weights each time, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name)  # type: ignore[no-any-return]  # timm is untyped


def _build(name: str, state: State, origin: str, num_classes: int | None = None) -> nn.Module:
    """The model with these weights, every tensor of them. `num_classes`: the head's own, None for the pretrained one's.

    timm's pretrained path runs its filters, so that checkpoints of a model's first authors fit too.
    """
    overlay: dict[str, Any] = {"state_dict": state}
    if num_classes is not None:
        overlay |= {"num_classes": num_classes, "label_offset": 0}
    try:
        module = timm.create_model(name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay)
    except Exception:  # a filter or load_state_dict, on a stranger's keys: whatever it is, they do not fit
        own = timm.create_model(name, num_classes=num_classes).state_dict()
        complete = _with_shared(state, own)
        if len(complete) == len(state):
            raise EngineError(_mismatch(name, state, own, origin)) from None
        return _build(name, complete, origin, num_classes)
    module.pretrained_cfg.pop("state_dict", None)  # or the tensors would live as long as the model
    return module  # type: ignore[no-any-return]


def _with_shared(state: State, own: State) -> State:
    """The weights with every name of a tensor that the model shares between modules, where the file has one of them.

    CoaT's blocks share their position encodings, and safetensors' save_model writes a shared tensor once.
    """
    groups: dict[int, list[str]] = {}
    for key, tensor in own.items():
        groups.setdefault(tensor.data_ptr(), []).append(key)
    complete = dict(state)
    for keys in groups.values():
        if present := next((key for key in keys if key in state), None):
            complete |= {key: state[present] for key in keys if key not in state}
    return complete


def _mismatch(name: str, state: State, own: State, origin: str) -> str:
    """How these weights differ from the model's own, in one line."""
    missing = [key for key in own if key not in state]
    surplus = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
        for kind, keys in (("missing", missing), ("unknown", surplus), ("of another shape", shapes))
        if keys
    ]
    return f"the weights from {origin} do not fit {name}: {'; '.join(parts) or 'timm cannot load them'}"


# ---- files


def _from_file(name: str, path: Path) -> tuple[nn.Module, str]:
    digest = _digest(path)
    if path.suffix.lower() not in _FILE_TYPES:
        raise EngineError(f"weights {str(path)!r}: not a .safetensors, .pth, .pt or .bin file")
    state = _read_state(path)
    return _build(name, state, str(path), _head_classes(name, state)), f"file:{digest[:12]}"


def _digest(path: Path) -> str:
    """The file's sha256, and the first look at it. Parsers would take a file that is closed to us for a broken one."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        why = f"permission denied: the user {os.geteuid()} may not read it (chmod a+r, and a+x for its folders)"
    except OSError:
        why = "no such file (weights are hub, random, package:<name> or a .safetensors or .pth file)"
    raise EngineError(f"weights {str(path)!r}: {why}")


def _from_package(name: str, package: str) -> nn.Module:
    if package != lite0.PACKAGE:
        raise EngineError(f"weights package {package!r} is not known; {lite0.PACKAGE} is")
    if name.partition(".")[0] != lite0.ARCHITECTURE:
        raise EngineError(f"the package {package} holds weights of {lite0.ARCHITECTURE}.in1k, not of {name}")
    return _build(name, lite0.timm_names(_read_state(lite0.checkpoint_path())), package)


def _head_classes(name: str, state: State) -> int | None:
    """Classes of the checkpoint's own head, which a fine-tuned one has fewer or more of; None where it is not named."""
    heads = timm.get_pretrained_cfg(name).classifier
    head = heads if isinstance(heads, str) or not heads else heads[0]
    weight = state.get(f"{head}.weight")
    return None if weight is None else len(weight)


def _read_state(path: Path) -> State:
    """The tensors of a checkpoint file, unwrapped, without a trainer's prefixes. Raises EngineError."""
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # harmless, and in timm's own checkpoints
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # two parsers at work on a stranger's file
        kind = type(error).__name__
        why = (
            "not a file of tensors alone, and nothing else is unpickled"
            if kind == "UnpicklingError"
            else f"cannot be read ({kind})"
        )
        raise EngineError(f"weights {str(path)!r}: {why}; save the model's state_dict as .safetensors") from None
    return _unwrapped(content, path)


def _unwrapped(content: object, path: Path) -> State:
    """The state dict inside what timm, DDP, torch.compile and most trainers save (the rules are timm's)."""
    from timm.models import clean_state_dict

    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    state = (
        clean_state_dict(content) if isinstance(content, dict) and all(isinstance(key, str) for key in content) else {}
    )
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise EngineError(f"weights {str(path)!r}: no state dict (names and tensors) in it")
    return state


# ---- the hub


def _hub_state(name: str) -> State:
    """From the local cache, else from the hub. Raises HubUnreachable, or EngineError where it has no such weights."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise EngineError(f"there are no weights of {name} on the hub: give --weights FILE, or --weights random")
    return _read_state(cached_weights(repository) or _downloaded(name, repository))


def _downloaded(name: str, repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if not hub_reachable(repository):
        raise _unreachable(name, "does not answer")
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            raise _unreachable(name, f"answers {status}" if status else "refuses") from None
        except Exception as error:  # the network, a full disk, a read-only cache: all end here
            raise _unreachable(name, f"breaks off ({type(error).__name__})") from None
    raise EngineError(f"{repository} on the hub holds neither {' nor '.join(HUB_FILES)}: give --weights FILE")


def hub_reachable(repository: str, timeout: float = _PROBE_TIMEOUT) -> bool:
    """Does the hub (HF_ENDPOINT, through the proxies of the environment) answer one request within `timeout` seconds?

    Asked once, in a thread that is given up on: name resolution knows no time-out, and huggingface_hub itself tries six
    times with growing pauses, 46 seconds in all, and logs twelve lines. HF_HUB_OFFLINE=1 counts as no.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/{repository}/resolve/main/{HUB_FILES[0]}"
    return _answers(lambda: get_session().head(url, timeout=timeout), timeout)


def _answers(ask: Callable[[], object], timeout: float) -> bool:
    """Whether `ask` returned within `timeout` seconds and raised nothing."""
    answered = threading.Event()
    finished = threading.Event()

    def probe() -> None:
        try:
            ask()
            answered.set()
        except Exception:  # noqa: S110  (whatever it is, the hub did not answer)
            pass
        finally:
            finished.set()

    threading.Thread(target=probe, name="hub-probe", daemon=True).start()
    finished.wait(timeout)
    return answered.is_set()


def _unreachable(name: str, why: str) -> HubUnreachable:
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname  # not the whole of it: it may hold a password
    what = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} {why}"
    ways = (
        "make the hub or a filled cache (HF_HOME) available, give --weights FILE, or --weights random for a load test"
    )
    return HubUnreachable(f"the weights of {name} are not in the local cache, and {what}: {ways}")
