"""CoaT, rewritten without changing its mathematics: the same function of its pictures, summed in another order.

From the pictures inwards: `network` is the whole model, `blocks` its blocks, `embedding` and
`attention` what those are made of, `tokens` how numbers lie, `arithmetic` and `layers` what computes, `folding` the
algebra on weights. Why a rewrite is allowed stands in the docstring of what does it, and tests/test_coat_*.py hold
each against timm's own modules.
"""

from coatstream.engine.model.coat.network import fused_network, is_coat

__all__ = ["fused_network", "is_coat"]
