"""What a budget in bytes, messages or seconds is charged at: a prediction as one number, and a site's share of it."""

from __future__ import annotations

from dataclasses import dataclass

from autorep_fx.budget import Budget
from autorep_fx.cost.charge import charge
from autorep_fx.cost.network import Network
from autorep_fx.cost.predict import Prediction
from autorep_fx.cost.profile import OperationCost, Profile, ProtocolProfile
from autorep_fx.cost.rules import Primitive
from autorep_fx.errors import BudgetError

__all__ = ["Tariff"]

# Elements of a call of which the price of one more is read: some thousand, as sites have.
_CALL = 2**14


@dataclass(frozen=True)
class Tariff:
    """Prices in the unit of a budget: bytes of all parties, messages, or seconds.

    Attributes:
        budget: The budget.
        costs: Costs of its protocol.
    """

    budget: Budget
    costs: ProtocolProfile

    @classmethod
    def of(cls, budget: Budget, profile: Profile) -> Tariff:
        """The prices that ``budget`` is stated in.

        Raises:
            ConfigError: The profile has no such protocol, or there is no such network.
            BudgetError: The protocol has constants that nobody checked, and the budget does not allow them; or the
                profile does not tell what the budget needs.
        """
        protocol = budget.protocol or ""
        costs = profile.protocol(protocol)
        if budget.network is not None:
            Network.parse(budget.network)
        if not costs.verified and not budget.allow_unverified:
            raise BudgetError(
                f"The costs of {protocol} in the profile {profile.name} are unverified, and decide nothing.",
                received=str(budget),
                fix="Name a protocol that was measured, or pass allow_unverified=True (allow_unverified: true).",
            )
        if budget.kind == "seconds" and any(cost.seconds is None for cost in costs.operations.values()):
            raise BudgetError(
                f"The profile {profile.name} does not tell how long {protocol} computes.", received=str(budget),
                fix="Measure the engine (autorep-fx cost calibrate) and name that profile; or state it in bytes.",
            )  # fmt: skip
        missing = [name for name in ("compare", "select", "product", "truncation") if name not in costs.operations]
        if missing:
            raise BudgetError(
                f"The profile {profile.name} does not tell what {', '.join(missing)} cost under {protocol}.",
                received=str(budget), fix="Name another protocol or profile.",
            )  # fmt: skip
        return cls(budget, costs)

    def spent(self, prediction: Prediction) -> float | None:
        """What a query costs; None where that is not known."""
        if self.budget.kind == "bytes":
            return prediction.bytes
        if self.budget.kind == "messages":
            return prediction.messages
        return prediction.seconds(Network.parse(self.budget.network or ""))

    def of_elements(self, *operations: str) -> float:
        """Price of one element more in a call of each of the operations."""
        return sum(self._of_call(name, 2 * _CALL) - self._of_call(name, _CALL) for name in operations) / _CALL

    def of_calls(self, *operations: str) -> float:
        """Price of one call of each of the operations, without its elements."""
        return sum(2 * self._of_call(name, _CALL) - self._of_call(name, 2 * _CALL) for name in operations)

    @property
    def comparison(self) -> float:
        """Price of one comparison with its selection."""
        return self.of_elements("compare", "select")

    @property
    def squaring(self) -> tuple[str, str]:
        """The operations of a square."""
        return "square" if "square" in self.costs.operations else "product", "truncation"

    @property
    def square(self) -> float:
        """Price of one square with its truncation."""
        return self.of_elements(*self.squaring)

    def _of_call(self, operation: str, elements: int) -> float:
        """Price of one call on so many elements."""
        cost: OperationCost = self.costs.operations[operation]
        found = charge(Primitive(operation, elements), cost, self.costs.parties)
        if self.budget.kind == "bytes":
            return found.bytes
        if self.budget.kind == "messages":
            return found.messages or 0.0
        link = Network.parse(self.budget.network or "")
        sent = 8 * found.bytes / self.costs.parties / link.bandwidth
        return sent + (found.messages or 0.0) * link.latency + (found.seconds or 0.0)
