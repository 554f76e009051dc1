"""What a model is, as plain data: results, metrics and logs carry it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What runs, in words that go into results, metrics and logs.

    weights        `hub`, `file:<12 hex digits of its sha256>`, `package:<name>`, `random`, or `none` (noop)
    engine         eager, fused, compile, openvino or noop
    precision      of the arithmetic: fp32, bf16, fp16, or `none` (noop)
    num_features   width of the pooled embedding; 0 where there is none
    """

    name: str
    weights: str
    engine: str
    precision: str
    device: str
    num_features: int
