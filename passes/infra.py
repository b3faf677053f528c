"""The pass contract: a pass takes a captured graph, changes it in place, and says honestly whether it did.

``requires`` looks at the module that comes in, ``call`` works, ``ensures`` looks at the *result*. A
:class:`Pipeline` is an explicit, ordered tuple of passes and is itself a pass, so pipelines nest.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import fx

from autorep_fx.errors import AutorepError, PassError, PostconditionError, PreconditionError

__all__ = ["Pass", "PassResult", "Pipeline"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        module: The module after the pass; the same object that went in.
        modified: Whether the pass changed anything at all.
    """

    module: fx.GraphModule
    modified: bool


class Pass(ABC):
    """One step from graph to graph.

    Subclasses implement :meth:`call`, and :meth:`requires` / :meth:`ensures` where they have something to check.
    Options are keyword arguments of the constructor. A pass works in place, and the object that comes out is the
    one that went in; use ``copy.deepcopy`` first to keep the original.
    """

    @property
    def name(self) -> str:
        """The name in messages: the class name."""
        return type(self).__name__

    def requires(self, module: fx.GraphModule) -> None:  # noqa: B027 - most passes have nothing to ask
        """Raise :class:`PreconditionError` if the pass cannot take ``module``."""

    @abstractmethod
    def call(self, module: fx.GraphModule) -> PassResult:
        """Do the work."""

    def ensures(self, result: PassResult) -> None:  # noqa: B027 - likewise
        """Raise :class:`PostconditionError` if the result breaks what the pass promises."""

    @final
    def __call__(self, module: fx.GraphModule | PassResult) -> PassResult:
        """Run the pass with its checks; a previous result may be passed on as it is.

        Raises:
            PreconditionError: ``requires`` refused the module.
            PostconditionError: ``ensures`` refused the result, or ``call`` returned something else than asked.
            PassError: Anything else went wrong inside the pass.
        """
        if isinstance(module, PassResult):
            module = module.module
        self._guard(PreconditionError, "does not take this module", lambda: self.requires(module))
        result = self._run(module)
        if not isinstance(result, PassResult):
            raise PostconditionError(
                f"{self.name} did not return a PassResult.",
                received=type(result).__name__,
                fix="Pass developer: return PassResult(module, modified=...).",
            )
        if result.module is not module:
            raise PostconditionError(
                f"{self.name} returned another module than it was given.",
                fix="Pass developer: edit the module in place and return that object.",
            )
        self._guard(PostconditionError, "broke its own promise", lambda: self.ensures(result))
        logger.info("%s: %s", self.name, "modified" if result.modified else "nothing to do")
        return result

    def _run(self, module: fx.GraphModule) -> PassResult:
        try:
            return self.call(module)
        except AutorepError:
            raise
        except Exception as error:
            raise PassError(f"{self.name} failed: {type(error).__name__}: {error}") from error

    def _guard(self, kind: type[AutorepError], text: str, check: object) -> None:
        try:
            check()  # type: ignore[operator]
        except AutorepError:
            raise
        except Exception as error:
            raise kind(f"{self.name} {text}: {error}") from error


class Pipeline(Pass):
    """Passes in order, as one pass.

    Args:
        *passes: The passes; they run in this order.
        name: Name in messages.
    """

    def __init__(self, *passes: Pass, name: str = "Pipeline") -> None:
        self.passes = passes
        self._name = name

    @property
    def name(self) -> str:
        """The name in messages."""
        return self._name

    def call(self, module: fx.GraphModule) -> PassResult:
        """Run all passes; an error says where in the pipeline it happened."""
        modified = False
        done: list[str] = []
        for pass_ in self.passes:
            try:
                result = pass_(module)
            except AutorepError as error:
                error.add_note(f"In {self.name}, at {pass_.name}; already run: {', '.join(done) or 'none'}.")
                raise
            modified = modified or result.modified
            done.append(pass_.name)
        return PassResult(module, modified)
