"""CoaT models with weights that hide nothing: timm starts norms at gain 1 and bias 0, where any fold is right."""

from typing import TypeVar

import timm
import torch
from coatstream.engine.model.classifier import TimmClassifier, input_spec
from coatstream.engine.model.coat.arithmetic import Arithmetic
from coatstream.errors import EngineError
from timm.models import coat
from torch import Tensor, nn

LITE = ("coat_lite_tiny", "coat_lite_mini", "coat_lite_small", "coat_lite_medium", "coat_lite_medium_384")
PARALLEL = ("coat_tiny", "coat_mini", "coat_small")

M = TypeVar("M", bound=nn.Module)

PLAIN = Arithmetic(torch.float32, packed=False)


def has_packed(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this machine's PyTorch has oneDNN's packed layers."""
    try:
        Arithmetic(dtype, packed=True)
    except EngineError:
        return False
    return True


def varied(module: M, seed: int = 1) -> M:
    """Each weight, bias, gain and token drawn anew, at a scale that keeps numbers near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            inputs = parameter[0].numel() if parameter.ndim > 1 else 0
            parameter.copy_(noise * inputs**-0.5 if inputs else parameter + 0.3 * noise)
    return module.eval()


def coat_classifier(name: str, **options: object) -> TimmClassifier:
    module = varied(timm.create_model(name, **options))
    return TimmClassifier(module, name, "random", input_spec(module, name), (), True, module.num_features)


def attention(channels: int, heads: int) -> coat.FactorAttnConvRelPosEnc:
    encoding = coat.ConvRelPosEnc(channels // heads, heads, {3: 2, 5: 3, 7: 3})
    return varied(coat.FactorAttnConvRelPosEnc(channels, heads, qkv_bias=True, shared_crpe=encoding))


def class_last(tokens: Tensor) -> Tensor:
    """timm's tokens, class token first -> ours."""
    return torch.cat((tokens[:, 1:], tokens[:, :1]), dim=1)


def pixels(count: int, height: int = 224, width: int = 224, seed: int = 2) -> Tensor:
    """uint8 [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for rounding: beside numbers near 1, float32 sums of some hundred terms differ by about 0.000002."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
