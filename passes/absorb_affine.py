"""Absorb affine maps: scales, shifts and constants of norms and polynomials move into linear layers."""

from __future__ import annotations

from torch import fx

from autorep_fx.passes.form_walk import FormWalk
from autorep_fx.passes.forms import FORM_KEY
from autorep_fx.passes.gate_forms import CONDITIONING
from autorep_fx.passes.infra import Pass, PassResult

__all__ = ["AbsorbAffinePass"]


class AbsorbAffinePass(Pass):
    r"""Stores values in forms that save arithmetic: ``true = scale · stored + shift`` per channel.

    One walk follows the forms forward:

    1. A norm that nothing folded, or arithmetic with constants, changes the form of its input and computes nothing.
    2. A linear operation takes its input in any form and leaves its output in the scale that its readers wish, which a
       walk backwards found; outputs without weights are constants. A shift of its input becomes part of its bias; where
       it pads with zeros, the shift is added before: a constant per position behind it would be as exact and larger,
       and onnxruntime leaves its blocks of channels to add one.
    3. A quadratic wishes its input around its vertex, ``u = x + h`` with ``h = c1 / 2·c2``: then it is a square, and
       ``c2`` and the constant go on to its readers. Where kept elements are among them and the readers take any scale,
       it is stored in that of ``1/c2``, which the square and the activation both leave. Shifts go back into the biases
       of linear operations through sums, concatenations and averages that nothing else reads. Where that is not
       possible, or ``√|c2|·|h|`` is above ``conditioning``, it is ``z·(z + g)``: an addition more, and no cancellation.
    4. A linear polynomial computes nothing.
    5. A sum takes inputs of equal scales. Along a residual chain the scale before each quadratic is the geometric mean
       of ``1/|c2|`` and the scale behind it, so that all of them meet without a product. Where a wish cannot be met, a
       linear operation takes over the scale of what it is added to.
    6. Averages, max pooling (positive scales), views, slices and concatenations carry forms on.
    7. Anything else, and the model's output, takes true values: what is left is multiplied and added there, and noted.

    Args:
        conditioning: Largest √|c2|·|h| at which the square is completed. The cancellation costs about its square times
            the rounding of the dtype.
    """

    def __init__(self, *, conditioning: float = CONDITIONING) -> None:
        self.conditioning = conditioning

    def call(self, module: fx.GraphModule) -> PassResult:
        """Find the forms and rewrite the linear operations; gates get their forms to be lowered in."""
        if any(FORM_KEY in node.meta for node in module.graph.nodes):
            return PassResult(module, modified=False)  # the weights hold what the gates were given
        walk = FormWalk(module, self.conditioning)
        for node in list(module.graph.nodes):
            walk.visit(node)
        return PassResult(module, walk.finish())
