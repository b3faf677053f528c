"""What a budget in bytes, messages or seconds is charged at: a prediction as one number, and a site's share of it."""

from __future__ import annotations

from dataclasses import dataclass

from autorep_fx.budget import Budget
from autorep_fx.cost.network import Network
from autorep_fx.cost.predict import Prediction
from autorep_fx.cost.profile import Profile, ProtocolProfile
from autorep_fx.errors import BudgetError

__all__ = ["Tariff"]


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
                profile does not tell how many messages its operations take, and the budget needs that.
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
        uncounted = [name for name, cost in costs.operations.items() if cost.messages is None]
        if uncounted and budget.kind != "bytes":
            raise BudgetError(
                f"The profile {profile.name} does not tell how many messages {', '.join(uncounted)} take under "
                f"{protocol}.", received=str(budget), fix="State the budget in bytes, or name another protocol.",
            )  # fmt: skip
        return cls(budget, costs)

    def spent(self, prediction: Prediction) -> float | None:
        """What a query costs; None where that is not known."""
        if self.budget.kind == "bytes":
            return prediction.bytes
        if self.budget.kind == "messages":
            return prediction.messages
        return prediction.link_seconds(Network.parse(self.budget.network or ""))

    def of_elements(self, *operations: str) -> float:
        """Price of one element of each of the operations, apart from what a call costs."""
        sent = sum(self._operation(name, "bytes") for name in operations)
        return {"bytes": sent, "messages": 0.0}.get(self.budget.kind, self._seconds(sent, 0))

    def of_calls(self, *operations: str) -> float:
        """Price of one call of each of the operations, apart from what elements cost."""
        waited = sum(self._operation(name, "messages") for name in operations)
        return {"bytes": 0.0, "messages": waited}.get(self.budget.kind, self._seconds(0, waited))

    @property
    def comparison(self) -> float:
        """Price of one comparison with its selection."""
        return self.of_elements("compare", "select")

    @property
    def square(self) -> float:
        """Price of one product with its truncation."""
        return self.of_elements("product", "truncation")

    def _operation(self, name: str, field: str) -> float:
        cost = self.costs.operations.get(name)
        return float(getattr(cost, field) or 0) if cost is not None else 0.0

    def _seconds(self, sent: float, messages: float) -> float:
        if self.budget.network is None:
            return 0.0
        link = Network.parse(self.budget.network)
        return 8 * sent / self.costs.parties / link.bandwidth + messages * link.latency
