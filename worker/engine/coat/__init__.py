"""CoaT, rewritten without changing its mathematics: the same function of its pictures, summed in another order.

From the pictures inwards: `network` is the whole model, `blocks` its blocks, `attention` and `convolution` and `linear`
what they are made of, `folding` the algebra on weights. Why each rewrite is allowed stands in the docstring of what
does it, and tests/test_coat_*.py hold each against timm's own modules.
"""

from worker.engine.coat.network import fused_network, is_coat

__all__ = ["fused_network", "is_coat"]
