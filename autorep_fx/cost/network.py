"""Networks between the parties, and the time that bytes and rounds take in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autorep_fx.errors import ConfigError

__all__ = ["NETWORKS", "Network"]

_TEXT = re.compile(r"\s*(?P<rate>\d+(?:\.\d+)?)\s*(?P<unit>[MG])bps\s*[,/]\s*(?P<delay>\d+(?:\.\d+)?)\s*ms\s*", re.I)


@dataclass(frozen=True)
class Network:
    """A link between any two parties.

    Attributes:
        name: Its name.
        bandwidth: Bits per second, each way.
        latency: One way, in seconds: half a round trip.
    """

    name: str
    bandwidth: float
    latency: float

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read ``lan``, ``wan``, or a link of one's own such as ``100Mbps,40ms``.

        Raises:
            ConfigError: It is neither.
        """
        if text in NETWORKS:
            return NETWORKS[text]
        match = _TEXT.fullmatch(text)
        if match is None or not float(match["rate"]):
            raise ConfigError(
                "That is no network.", received=repr(text),
                fix="Name one of lan, wan, or write bandwidth and latency: 100Mbps,40ms.",
            )  # fmt: skip
        scale = 1e9 if match["unit"].upper() == "G" else 1e6
        return cls(text.strip(), float(match["rate"]) * scale, float(match["delay"]) / 1000)

    def seconds(self, sent_bytes: float, rounds: int) -> float:
        """Time on the link.

        Args:
            sent_bytes: What one party sends.
            rounds: Messages that wait for one another.
        """
        return 8 * sent_bytes / self.bandwidth + rounds * self.latency


#: Those with a name.
NETWORKS = {"lan": Network("lan", 1e9, 0.5e-3), "wan": Network("wan", 100e6, 40e-3)}
