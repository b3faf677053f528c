"""Typed errors: what was wrong, what was received, what to do.

Every error that a user can cause derives from :class:`AutorepError`. Its message is one sentence on what is
wrong, then what was received, then what to do about it; the three parts are attributes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class AutorepError(Exception):
    """Base of all errors that autorep-fx raises for something its user can change.

    Args:
        what: What is wrong, as a sentence.
        received: What was received instead.
        fix: What to do.
    """

    def __init__(self, what: str, *, received: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.received = received
        self.fix = fix
        parts = [what]
        if received is not None:
            parts.append(f"Received: {received}")
        if fix is not None:
            parts.append(f"To fix: {fix}")
        super().__init__("\n".join(parts))


class BudgetError(AutorepError, ValueError):
    """A budget that is not in the grammar, or is larger than what the model spends."""


class BudgetInfeasibleError(BudgetError):
    """A budget below the comparisons that no gate can remove."""


class ConfigError(AutorepError, ValueError):
    """A setting that is unknown, out of range, or contradicts another one."""


class UnsupportedModelError(AutorepError):
    """A model that cannot be compiled; ``obstacles`` lists every cause that was found."""

    def __init__(self, obstacles: Sequence[str], *, fix: str | None = None) -> None:
        self.obstacles = tuple(obstacles)
        lines = "\n".join(f"  {i}. {text}" for i, text in enumerate(self.obstacles, 1))
        count = len(self.obstacles)
        super().__init__(
            f"The model cannot be compiled: {count} obstacle{'s' if count != 1 else ''}.\n{lines}", fix=fix
        )


class NoSitesError(AutorepError):
    """A model without an activation that could be gated."""


class DataError(AutorepError, ValueError):
    """A batch of another form or shape than the model takes, or one that is not finite."""


class NonFiniteError(AutorepError, ArithmeticError):
    """A loss, output or coefficient that is NaN or infinite."""


class StoppedError(AutorepError):
    """Training was asked to stop, by a signal; its state is saved."""


class CheckpointError(AutorepError):
    """A checkpoint or weights file that is truncated, foreign, or of another model."""


class PlanError(AutorepError):
    """A plan that is truncated, foreign, of a newer format, or of another model."""


class NotProjectedError(AutorepError):
    """Lowering was asked for before the gates were projected onto the budget."""


class ParityError(AutorepError):
    """An exported model whose outputs or counts differ from the model it came from."""


class OutputError(AutorepError, OSError):
    """A result that could not be written."""


class ModelFileError(AutorepError):
    """An ONNX file that is missing, damaged or not what it says."""


class DeviceError(AutorepError, RuntimeError):
    """A device that was asked for and is not there."""


class InvariantError(AutorepError):
    """A condition that a pass or a stage promises does not hold."""


class PreconditionError(InvariantError):
    """A pass was given a module that it cannot take."""


class PostconditionError(InvariantError):
    """A pass returned a module that breaks its own promise."""


class PassError(AutorepError):
    """A pass failed; the message names it and the passes that had already run."""


class EngineMissingError(AutorepError, ImportError):
    """SPU, or what it stands on, cannot be imported here."""


class SecureProgramError(AutorepError):
    """A public program, or its weights, that is damaged, foreign, or cannot run in the engine.

    ``obstacles`` lists every cause that was found.
    """

    def __init__(
        self, what: str, *, received: str | None = None, fix: str | None = None, obstacles: Sequence[str] = ()
    ) -> None:
        self.obstacles = tuple(obstacles)
        lines = "".join(f"\n  {i}. {text}" for i, text in enumerate(self.obstacles, 1))
        super().__init__(what + lines, received=received, fix=fix)


class ProtocolError(AutorepError):
    """Settings of a secure protocol that do not fit, or that are not safe unless they are asked for."""


class PeerError(AutorepError):
    """Another party is not who it should be, runs something else, sends what does not fit, or is gone."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known names, or an empty string."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
