"""The pass contract, with toy passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from autorep_fx.errors import (
    InvariantError,
    PassError,
    PostconditionError,
    PreconditionError,
    UnsupportedModelError,
)
from autorep_fx.passes.infra import Pass, PassResult, Pipeline


class Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.neg(torch.relu(x))


def graph() -> fx.GraphModule:
    return fx.symbolic_trace(Scale())


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


class Replace(Pass):
    """Replaces one function by another."""

    def __init__(self, old: Callable[..., object] = torch.neg, new: Callable[..., object] = torch.abs) -> None:
        self.old, self.new = old, new

    def call(self, module: fx.GraphModule) -> PassResult:
        found = [node for node in module.graph.nodes if node.target is self.old]
        for node in found:
            node.target = self.new
        module.recompile()
        return PassResult(module, modified=bool(found))


class Custom(Pass):
    """A pass made of functions."""

    def __init__(
        self,
        requires: Callable[[fx.GraphModule], None] = lambda module: None,
        call: Callable[[fx.GraphModule], object] = lambda module: PassResult(module, modified=False),
        ensures: Callable[[PassResult], None] = lambda result: None,
    ) -> None:
        self._requires, self._call, self._ensures = requires, call, ensures

    def requires(self, module: fx.GraphModule) -> None:
        self._requires(module)

    def call(self, module: fx.GraphModule) -> PassResult:
        return self._call(module)  # type: ignore[return-value]

    def ensures(self, result: PassResult) -> None:
        self._ensures(result)


def failing(error: BaseException) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


def test_a_pass_needs_only_its_work() -> None:
    """A subclass with call alone runs; without it there is no pass."""
    assert Replace()(graph()).modified
    with pytest.raises(TypeError, match="abstract"):
        Pass()  # type: ignore[abstract]


def test_the_work_is_done_in_place() -> None:
    """What comes out is the object that went in, changed and recompiled."""
    module = graph()
    result = Replace()(module)
    assert result.module is module
    assert targets(module) == [torch.relu, torch.abs]
    assert torch.equal(module(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_modified_is_honest_both_ways() -> None:
    """True when something changed, False on the second run, which leaves graph and code alone."""
    module = graph()
    assert Replace()(module).modified is True
    code = module.code
    assert Replace()(module).modified is False
    assert module.code == code


def test_a_result_can_be_passed_on() -> None:
    """A pass takes the result of the one before."""
    result = Replace(torch.abs, torch.neg)(Replace()(graph()))
    assert result.modified
    assert targets(result.module) == [torch.relu, torch.neg]


@pytest.mark.parametrize(
    ("stage", "kind"), [("requires", PreconditionError), ("ensures", PostconditionError), ("call", PassError)]
)
def test_a_generic_exception_is_wrapped(stage: str, kind: type[Exception]) -> None:
    """Each check has its own error, which names the pass and keeps the cause and its text."""
    cause = ValueError("three nodes left")
    with pytest.raises(kind, match=r"Custom .*three nodes left") as caught:
        Custom(**{stage: failing(cause)})(graph())
    assert caught.value.__cause__ is cause
    assert type(caught.value) is kind


@pytest.mark.parametrize("stage", ["requires", "call", "ensures"])
@pytest.mark.parametrize("error", [UnsupportedModelError(["a loop"]), PreconditionError("not captured")], ids=repr)
def test_a_precise_error_passes_through(stage: str, error: Exception) -> None:
    """An error of the project is raised as it is, whatever check it comes from."""
    with pytest.raises(type(error)) as caught:
        Custom(**{stage: failing(error)})(graph())
    assert caught.value is error


@pytest.mark.parametrize("stage", ["requires", "call", "ensures"])
def test_an_interrupt_is_no_failure_of_the_pass(stage: str) -> None:
    """Ctrl-C is not wrapped."""
    with pytest.raises(KeyboardInterrupt):
        Custom(**{stage: failing(KeyboardInterrupt())})(graph())


def test_a_refused_module_is_not_touched() -> None:
    """After requires has refused, call does not run."""
    ran = []
    with pytest.raises(PreconditionError):
        Custom(requires=failing(ValueError()), call=lambda module: ran.append(module))(graph())
    assert ran == []


def test_ensures_sees_the_result() -> None:
    """The check after the work is given the result, with the changed graph."""
    seen: list[tuple[bool, list[object]]] = []

    class Checked(Replace):
        def ensures(self, result: PassResult) -> None:
            seen.append((result.modified, targets(result.module)))

    Checked()(graph())
    assert seen == [(True, [torch.relu, torch.abs])]


@pytest.mark.parametrize("value", [None, True, "module"])
def test_another_return_type_is_refused(value: object) -> None:
    """The message says what came and is addressed to who wrote the pass."""
    with pytest.raises(PostconditionError, match="Pass developer") as caught:
        Custom(call=lambda module: value)(graph())
    assert caught.value.received == type(value).__name__


def test_the_bare_module_is_no_result() -> None:
    """Returning the module without saying whether it changed is refused."""
    with pytest.raises(PostconditionError, match="did not return a PassResult"):
        Custom(call=lambda module: module)(graph())


def test_another_module_is_refused() -> None:
    """A pass cannot swap the object, not even for an equal one."""
    with pytest.raises(PostconditionError, match="another module"):
        Custom(call=lambda module: PassResult(graph(), modified=False))(graph())


def test_the_errors_have_one_family() -> None:
    """Pre- and postconditions are invariants; a failed pass is not."""
    assert issubclass(PreconditionError, InvariantError)
    assert issubclass(PostconditionError, InvariantError)
    assert not issubclass(PassError, InvariantError)


def test_a_pipeline_runs_in_order_and_sums_up() -> None:
    """Neg → abs → sign needs that order; the pipeline was modified if any pass was."""
    module = graph()
    there, on = Replace(torch.neg, torch.abs), Replace(torch.abs, torch.sign)
    assert Pipeline(there, on)(module).modified is True
    assert targets(module) == [torch.relu, torch.sign]
    assert Pipeline(there, on)(module).modified is False
    assert Pipeline(on, Replace(torch.sign, torch.abs))(module).modified is True
    assert Pipeline()(module).modified is False


def test_a_pipeline_is_a_pass() -> None:
    """Pipelines nest, and each keeps its name."""
    inner = Pipeline(Replace(), name="inner")
    outer = Pipeline(inner, Replace(torch.abs, torch.sign), name="outer")
    assert isinstance(outer, Pass)
    assert (inner.name, outer.name, Pipeline().name) == ("inner", "outer", "Pipeline")
    module = graph()
    assert outer(module).modified
    assert targets(module) == [torch.relu, torch.sign]


def test_a_failure_names_its_place() -> None:
    """The note names the pass and those already run, at every level of nesting."""
    inner = Pipeline(Replace(), Custom(call=failing(ValueError("no"))), Replace(), name="inner")
    with pytest.raises(PassError, match="Custom failed: ValueError: no") as caught:
        Pipeline(Replace(torch.sign, torch.neg), inner, name="outer")(graph())
    assert caught.value.__notes__ == [
        "In inner, at Custom; already run: Replace.",
        "In outer, at inner; already run: Replace.",
    ]


def test_a_failure_of_the_first_pass_has_none_before() -> None:
    """Where nothing ran yet, the note says so."""
    with pytest.raises(PreconditionError) as caught:
        Pipeline(Custom(requires=failing(ValueError("no"))), Replace(), name="lower")(graph())
    assert caught.value.__notes__ == ["In lower, at Custom; already run: none."]


def test_after_a_failure_nothing_else_runs() -> None:
    """The passes behind the failing one leave the module alone."""
    module = graph()
    with pytest.raises(PassError):
        Pipeline(Custom(call=failing(ValueError())), Replace())(module)
    assert targets(module) == [torch.relu, torch.neg]
