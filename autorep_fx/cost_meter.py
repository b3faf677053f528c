"""What a gated model costs under a protocol: it is lowered, written as ONNX, and that graph's cost is predicted."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from autorep_fx.budget import Budget
from autorep_fx.config import TransformConfig
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.predict import Prediction, predict
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import Profile, load_profile
from autorep_fx.cost.tariff import Tariff
from autorep_fx.errors import BudgetError
from autorep_fx.export.graph_only import write_graph
from autorep_fx.lowering import lower
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.gated_model import GatedModel

__all__ = ["CostMeter", "predict_module"]


def predict_module(
    module: CapturedModule, example: ExampleInputs, profile: Profile, protocol: str, *, opset: int = 20
) -> Prediction:
    """Predict what a query of one sample of a lowered module costs, from the ONNX graph that it becomes.

    Raises:
        ConfigError: The profile has no such protocol.
        UnsupportedModelError: ONNX has no form for the module.
    """
    costs = profile.protocol(protocol)
    with tempfile.TemporaryDirectory(prefix="autorep-cost-") as folder:
        path = Path(folder) / "model.onnx"
        write_graph(module, example, path, opset=opset)
        model = load_model(path)
    work = secure_work(model, protocol=protocol, ring_bits=profile.fixed_point.ring_bits)
    return predict(work, protocol, costs)


class CostMeter:
    """Measures gated models in the unit of a budget.

    Args:
        budget: A budget in bytes, messages or seconds.
        config: Settings, of which ``cost.profile`` names another profile than that of the package.

    Attributes:
        tariff: The prices.

    Raises:
        ConfigError: There is no such protocol, network or profile.
        BudgetError: The protocol's constants may not decide this.
    """

    def __init__(self, budget: Budget, config: TransformConfig) -> None:
        self._profile, self._opset = load_profile(config.cost.profile), config.export.opset
        self.tariff = Tariff.of(budget, self._profile)

    def spent(self, gated: GatedModel) -> float:
        """What a query of ``gated``, lowered with its gates as they are, costs.

        Raises:
            BudgetError: The profile does not know what some of its operations cost.
        """
        projected = copy.deepcopy(gated)
        projected.meter = None  # what is lowered to be measured is not held to the budget
        projected.freeze()
        compiled = lower(projected, consume=True)
        return self.spent_lowered(compiled.module, compiled.example)

    def spent_lowered(self, module: CapturedModule, example: ExampleInputs) -> float:
        """What a query of a lowered module costs.

        Raises:
            BudgetError: The profile does not know what some of its operations cost.
        """
        budget = self.tariff.budget
        prediction = predict_module(module, example, self._profile, budget.protocol or "", opset=self._opset)
        spent = self.tariff.spent(prediction)
        if spent is None:
            unknown = ", ".join(f"{name} at {count} nodes" for name, count in prediction.unknown.items())
            raise BudgetError(
                f"What the model costs under {budget.protocol} is not known; no budget in {budget.kind} can be held.",
                received=f"no cost in the profile {self._profile.name} for {unknown}",
                fix="Substitute the activations named (substitute: {silu: relu}), name another protocol, or state the "
                "budget in comparisons.",
            )
        return spent

    def adapted(self, config: TransformConfig) -> tuple[TransformConfig, str]:
        """Settings whose polynomials pay under the protocol, and a note; degrees of single sites stay.

        Where a product costs as much as the comparison that it replaces (CHEETAH), replaced units become linear, which
        costs nothing.
        """
        square, comparison = self.tariff.square, self.tariff.comparison
        if config.polynomials.degree < 2 or not comparison or square < comparison:
            return config, ""
        linear = config.model_copy(update={"polynomials": config.polynomials.model_copy(update={"degree": 1})})
        protocol, unit = self.tariff.budget.protocol, self.tariff.budget.kind
        return linear, (
            f"replaced units are linear: under {protocol} a square costs {square / comparison:.2g} times the {unit} of "
            "a comparison; set sites: {'*': {degree: 2}} to have squares all the same"
        )
