"""Networks: what engines run. Pictures as bytes in, logits out, normalised inside, so that only bytes travel.

A network is an nn.Module with

    forward(pixels: uint8 [n, height, width, 3] RGB) -> (logits,) or (logits, pooled)

where logits is float32 [n, classes] and pooled float32 [n, features], there where embeddings were asked for.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # it imports timm, and a start from the cache does without
    from coatstream.engine.model.classifier import TimmClassifier


class EagerNetwork(nn.Module):
    """timm's module as it is, behind its normalisation: the reference for all others.

    In another precision than float32 it runs on a copy of the weights; normalisation stays in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, classifier: "TimmClassifier", *, dtype: torch.dtype = torch.float32, embeddings: bool = False
    ) -> None:
        super().__init__()
        module = classifier.module
        self.module: Any = module if dtype == torch.float32 else deepcopy(module).to(dtype)
        self._dtype = dtype
        self._split = classifier.split
        self._embeddings = embeddings
        # As numbers of bytes: (pixel / 255 - mean) / std = (pixel - 255 mean) / (255 std)
        self.register_buffer("mean", 255 * torch.tensor(classifier.spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(classifier.spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 [n, height, width, 3] -> (logits,) or (logits, pooled). The head runs twice; it is the cheap part."""
        planes = self.normalised(pixels)
        if not self._split:
            return (self.module(planes).float(),)
        unpooled = self.module.forward_features(planes)
        logits = self.module.forward_head(unpooled).float()
        if not self._embeddings:
            return (logits,)
        return logits, self.module.forward_head(unpooled, pre_logits=True).flatten(1).float()

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] -> [n, 3, height, width] as timm's transform ends, in the network's precision."""
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return ((planes - self.mean) / self.std).to(self._dtype)

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] -> the unpooled features before the head, in the model's own shape."""
        unpooled: Tensor = self.module.forward_features(self.normalised(pixels))
        return unpooled
