"""Record shapes and dtypes of a graph after an edit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["fake_mode", "record_dtypes", "record_missing_shapes"]


def record_dtypes(module: fx.GraphModule, floating: torch.dtype | None = None) -> None:
    """Correct the dtypes in ``meta["val"]``, where the graph now computes in others than it was captured in.

    The graph is run on zeros of the sizes that it was captured with. Running it on its symbolic sizes would record
    shapes anew too, but operations that look at such a size may fix it for good.

    Args:
        module: The module.
        floating: The dtype that its floating-point inputs now have; None for that of the capture.
    """
    inputs = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    recorder = _DtypeRecorder(module, garbage_collect_values=True)
    with torch.no_grad():
        recorder.run(*(_zeros(value, floating) if isinstance(value, Tensor) else value for value in inputs))
    for node, dtype in recorder.dtypes.items():
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.dtype != dtype:
            with value.fake_mode:
                node.meta["val"] = value.to(dtype)


class _DtypeRecorder(fx.Interpreter):
    """Runs a graph and notes the dtype of every tensor."""

    def __init__(self, module: fx.GraphModule, *, garbage_collect_values: bool) -> None:
        super().__init__(module, garbage_collect_values=garbage_collect_values)
        self.dtypes: dict[fx.Node, torch.dtype] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.dtypes[n] = result.dtype
        return result


def _zeros(value: Tensor, floating: torch.dtype | None) -> Tensor:
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    dtype = floating if floating is not None and value.dtype.is_floating_point else value.dtype
    return torch.zeros(sizes, dtype=dtype, device=value.device)


def record_missing_shapes(module: fx.GraphModule, nodes: Iterable[fx.Node] | None = None) -> None:
    """Set ``meta["val"]`` of the nodes that have none, from those of their inputs.

    Args:
        module: The module.
        nodes: The new nodes in execution order, where they are known; None for all of the graph.
    """
    mode = fake_mode(module)
    with mode, torch.no_grad():
        for node in module.graph.nodes if nodes is None else nodes:
            if "val" not in node.meta and node.op in ("get_attr", "call_function"):
                node.meta["val"] = _evaluate(module, node, mode)


def fake_mode(module: fx.GraphModule) -> FakeTensorMode:
    """The mode that the recorded tensors of a graph were made in."""
    values = (node.meta.get("val") for node in module.graph.find_nodes(op="placeholder"))
    return next(value.fake_mode for value in values if isinstance(value, FakeTensor))


def _evaluate(module: fx.GraphModule, node: fx.Node, mode: FakeTensorMode) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return mode.from_tensor(getattr(module.get_submodule(owner), name), static_shapes=True)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    assert callable(node.target)
    return node.target(*args, **kwargs)
