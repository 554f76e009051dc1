from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from coatstream.engine.model.classifier import TimmClassifier
from coatstream.engine.model.coat import fused_network, is_coat
from coatstream.engine.model.coat.layers import PackedDepthwise
from coatstream.engine.model.network import EagerNetwork
from coatstream.engine.protocol import NotHere
from coatstream.errors import EngineError
from torch import Tensor, nn

from tests.support.absence import incapable, missing
from tests.support.coats import LITE, PARALLEL, close, coat_classifier, has_packed, pixels

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def mini() -> TimmClassifier:
    return coat_classifier("coat_lite_mini")


def agree(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    (logits, pooled), (logits_, pooled_) = found, wanted
    assert logits.dtype == pooled.dtype == FP32
    close(logits, logits_, 1e-4)
    close(pooled, pooled_, 1e-4)
    assert (logits.softmax(1) - logits_.softmax(1)).abs().max() < 1e-5
    assert logits_.std() > 0.1  # or else there would be nothing to disagree on


@torch.inference_mode()
@pytest.mark.parametrize("name", [*LITE, *PARALLEL])
def test_every_coat_of_timm_says_what_it_said_before(name: str) -> None:
    classifier = coat_classifier(name)
    pictures = pixels(1 if "medium" in name else 2, classifier.spec.height, classifier.spec.width)

    wanted = EagerNetwork(classifier, embeddings=True)(pictures)

    assert is_coat(classifier.module)
    for packed in (False, True) if has_packed() else (False,):
        agree(fused_network(classifier, dtype=FP32, packed=packed, embeddings=True)(pictures), wanted)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_is_off_by_no_more_than_timm_s_own(mini: TimmClassifier, packed: bool) -> None:
    if packed and not has_packed(BF16):
        incapable("this processor has no packed layers in bfloat16")
    pictures = pixels(4)
    (wanted,) = EagerNetwork(mini)(pictures)
    (theirs,) = EagerNetwork(mini, dtype=BF16)(pictures)

    (ours,) = fused_network(mini, dtype=BF16, packed=packed)(pictures)

    assert ours.dtype == FP32
    assert (ours - wanted).abs().mean() < 1.5 * (theirs - wanted).abs().mean()


@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_a_picture_s_result_does_not_depend_on_its_batch(mini: TimmClassifier, packed: bool) -> None:
    if packed and not has_packed():
        missing("packed layers")
    network = fused_network(mini, dtype=FP32, packed=packed)
    pictures = pixels(3)

    together = network(pictures)[0]

    for row in range(3):
        close(network(pictures[row : row + 1])[0], together[row : row + 1], 1e-4)


def test_the_model_itself_is_left_as_it_was(mini: TimmClassifier) -> None:
    before = {name: tensor.clone() for name, tensor in mini.module.state_dict().items()}

    fused_network(mini, dtype=BF16, packed=False)

    after = mini.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_blocks_of_a_stage_share_their_encodings(mini: TimmClassifier) -> None:
    if not has_packed():
        missing("packed layers")
    network = fused_network(mini, dtype=FP32, packed=True)

    kernels = [part for part in network.modules() if isinstance(part, PackedDepthwise)]

    assert len(kernels) == 8  # two for each of four stages, not two for each of eight blocks


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", ["coat_lite_tiny", "coat_tiny"])
def test_the_plain_network_can_be_exported_for_any_batch(name: str) -> None:
    network = fused_network(coat_classifier(name), dtype=FP32, packed=False, embeddings=True)
    pictures = pixels(3)
    with torch.inference_mode(False), torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(network, (pixels(2),), dynamic_shapes=({0: batch},))

    agree(exported.module()(pictures), network(pictures))


def _with_bare_norm() -> nn.Module:
    module: Any = timm.create_model("coat_lite_tiny")
    module.serial_blocks1[0].norm1 = nn.LayerNorm(64, elementwise_affine=False)
    changed: nn.Module = module
    return changed


def _with_approximate_gelu() -> nn.Module:
    module: Any = timm.create_model("coat_lite_tiny")
    module.serial_blocks1[0].mlp.act = nn.GELU(approximate="tanh")
    changed: nn.Module = module
    return changed


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "not CoaT": lambda: timm.create_model("resnet10t"),
    "average pooling": lambda: timm.create_model("coat_lite_tiny", global_pool="avg"),
    "no head": lambda: timm.create_model("coat_lite_tiny", num_classes=0),
    "features of stages": lambda: timm.create_model(
        "coat_lite_tiny", return_interm_layers=True, out_features=["x1_nocls"]
    ),
    "another norm": lambda: timm.create_model("coat_lite_tiny", norm_layer=nn.BatchNorm1d),
    "norms without gain": _with_bare_norm,
    "approximate GELU": _with_approximate_gelu,
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_rewrite_does_not_know_is_left_to_other_engines(other: str) -> None:
    assert not is_coat(OTHERS[other]())


def test_fusing_another_model_is_one_clear_error(mini: TimmClassifier) -> None:
    other = TimmClassifier(timm.create_model("resnet10t"), "resnet10t", "random", mini.spec, (), True, 512)

    with pytest.raises(NotHere, match="resnet10t is no CoaT, and only those can be fused"):
        fused_network(other, dtype=FP32, packed=False)


def test_a_precision_without_packed_layers_is_one_clear_error(mini: TimmClassifier) -> None:
    with pytest.raises(EngineError, match=r"no packed layers in torch\.float64 on this machine"):
        fused_network(mini, dtype=torch.float64, packed=True)
