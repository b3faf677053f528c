"""What changed between two plans, and between two ONNX models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

from autorep_fx.budget import Budget
from autorep_fx.cli import app
from autorep_fx.cost.onnx_products import count_products
from autorep_fx.diff import diff_models, diff_plans
from autorep_fx.errors import ModelFileError, PlanError
from autorep_fx.plan import FixedSite, Plan, SitePlan
from onnx_models import relu_net, save


def _site(name: str, kept: Any, *, granularity: str = "element", coefficients: Any = None, **changes: Any) -> SitePlan:
    """A site of two channels of three elements."""
    rows = np.array([[0.0, 0.0], [1.0, 1.0]]) if coefficients is None else np.array(coefficients)
    arguments = {
        "kind": "relu", "shape": (2, 3), "granularity": granularity, "degree": len(rows) - 1,
        "comparisons_per_element": 1, "kept": np.array(kept, dtype=bool), "coefficients": rows,
    }  # fmt: skip
    return SitePlan(name, **{**arguments, **changes})


def _plan(*sites: SitePlan, fixed: tuple[FixedSite, ...] = (), fingerprint: str = "f") -> Plan:
    kept = sum(site.comparisons for site in sites)
    return Plan(Budget.parse(max(kept, 1)), kept, sites, fixed, fingerprint)


_FIRST, _SECOND = [[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 1]]


def test_sites_are_compared_element_by_element() -> None:
    """Kept counts, what flipped in either direction, and what did not change."""
    found = diff_plans(_plan(_site("a", _FIRST), _site("b", _FIRST)), _plan(_site("a", _SECOND), _site("b", _FIRST)))
    a, b = found.sites
    assert (a.kept, a.newly_replaced, a.newly_kept) == ((2, 3), 1, 2)
    assert (a.granularity, a.degree) == (("element", "element"), (1, 1))
    assert found.comparisons == (4, 5)
    assert found.changed == (a,)
    assert (b.newly_replaced, b.newly_kept, b.coefficients) == (0, 0, (0.0, 0.0))
    assert found.same_graph


def test_gates_of_other_granularity_are_compared_by_their_elements() -> None:
    """Channel 0 kept as a channel is three elements."""
    before, after = _site("a", _FIRST), _site("a", [[1], [0]], granularity="channel")
    [site] = diff_plans(_plan(before), _plan(after)).sites
    assert (site.kept, site.newly_replaced, site.newly_kept) == ((2, 3), 0, 1)
    assert site.granularity == ("element", "channel")


def test_coefficients_are_compared_by_power_where_both_replace() -> None:
    """A channel that either keeps as a whole has no polynomial that counts; a missing power is zero."""
    before = _site("a", _FIRST, coefficients=[[0.0, 0.5], [1.0, 1.0]])
    after = _site("a", _FIRST, coefficients=[[0.1, 0.5], [1.0, 0.25], [0.0, -2.0]])
    [site] = diff_plans(_plan(before), _plan(after)).sites
    assert site.coefficients == pytest.approx((0.1, 0.75, 2.0))
    assert site.degree == (1, 2)
    keeping = _site("a", [[0, 0, 0], [1, 1, 1]], coefficients=[[0.1, 0.5], [1.0, 0.25], [0.0, -2.0]])
    [site] = diff_plans(_plan(before), _plan(keeping)).sites
    assert site.coefficients == pytest.approx((0.1, 0.0, 0.0))
    kept = _site("a", np.ones((2, 3)), coefficients=[[9.0, 9.0]])
    assert diff_plans(_plan(before), _plan(kept)).sites[0].coefficients == ()


def test_sites_of_one_plan_alone_and_fixed_ones_are_listed() -> None:
    """With nothing on the other side; a site that was gated and is fixed; other shapes flip nothing."""
    before = _plan(_site("a", _FIRST), _site("gone", _FIRST), fixed=(FixedSite("pool", "max_pool", 30, "no gate"),))
    larger = _site("a", np.ones((2, 4)), shape=(2, 4))
    after = _plan(
        larger, fixed=(FixedSite("pool", "max_pool", 20, ""), FixedSite("new", "relu", 6, "")), fingerprint="g"
    )
    rows = {site.name: site for site in diff_plans(before, after).sites}
    assert list(rows) == ["a", "gone", "pool", "new"]
    assert (rows["gone"].kept, rows["gone"].newly_kept) == ((2, None), None)
    assert (rows["pool"].comparisons, rows["pool"].granularity) == ((30, 20), ("fixed", "fixed"))
    assert rows["new"].comparisons == (None, 6)
    assert (rows["a"].newly_replaced, rows["a"].kept) == (None, (2, 8))
    assert not diff_plans(before, after).same_graph


def test_models_are_compared_by_operators_comparisons_and_products(tmp_path: Path) -> None:
    """A ReLU that became a polynomial: 8 comparisons less, 8 products more."""
    before, after = relu_net(tmp_path / "a.onnx"), relu_net(tmp_path / "b.onnx", polynomial=True)
    found = diff_models(before, after)
    assert (found.comparisons, found.multiplications) == ((8, 0), (0, 8))
    assert found.operators == {"Add": (0, 1), "MatMul": (2, 2), "Mul": (0, 3), "Relu": (1, 0)}
    assert (found.sites, found.by_site) == ({"relu": (8, None)}, False)
    assert found.inputs[0] == found.inputs[1] == ["x: float32 (batch, 4)"]


def test_models_that_say_their_sites_are_compared_by_site(tmp_path: Path) -> None:
    """From the metadata of either file."""
    files = [
        relu_net(tmp_path / f"{n}.onnx", metadata={"autorep_fx.comparisons_by_site": json.dumps({"relu1": n})})
        for n in (5, 8)
    ]
    found = diff_models(*files)
    assert (found.sites, found.by_site) == ({"relu1": (5, 8)}, True)


def test_what_cannot_be_counted_is_not_known(tmp_path: Path) -> None:
    """Control flow and a power leave the rest to be compared; a file that is none is refused."""
    info = helper.make_tensor_value_info("c", 1, [3])
    branch = helper.make_graph([helper.make_node("Relu", ["v"], ["c"])], "branch", [], [info])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    x = helper.make_tensor_value_info("x", 9, [])
    v, y = (helper.make_tensor_value_info(name, 1, [3]) for name in "vy")
    path = tmp_path / "if.onnx"
    model = helper.make_model(helper.make_graph([node], "g", [x, v], [y]), ir_version=10)
    path.write_bytes(model.SerializeToString())
    found = diff_models(path, relu_net(tmp_path / "a.onnx"))
    assert (found.comparisons, found.multiplications) == ((None, 8), (None, 0))
    assert found.inputs[0] == ["x: bool ()", "v: float32 (3)"]
    with pytest.raises(ModelFileError, match="no model file"):
        diff_models(path, tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("nodes", "products"),
    [
        ([helper.make_node("Mul", ["x", "w"], ["y"])], 0),
        ([helper.make_node("Mul", ["x", "x"], ["y"])], 16),
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], 0),
        ([helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "x"], ["y"])], 64),
        ([helper.make_node("Gemm", ["x", "x", "w"], ["y"], transA=1)], 64),
        ([helper.make_node("Mul", ["w", "w"], ["c"]), helper.make_node("Mul", ["c", "x"], ["y"])], 0),
        ([helper.make_node("Pow", ["x", "w"], ["y"])], None),
    ],
)
def test_products_between_values_are_counted(tmp_path: Path, nodes: Any, products: int | None) -> None:
    """Not those with weights; inside of a matrix product as many as it has; a power is not told."""
    tensors = {"w": np.ones((4, 4), np.float32)}
    path = save(tmp_path / "m.onnx", nodes, {"x": ("float32", [4, 4])}, {"y": ("float32", [4, 4])}, tensors)
    assert count_products(onnx.load(path)) == products


def test_the_command_takes_folders_plans_and_models(tmp_path: Path) -> None:
    """Two folders show plans and models; two plan.json the plans; two .onnx the models; anything else is refused."""
    for name, kept in (("one", _FIRST), ("two", _SECOND)):
        (tmp_path / name).mkdir()
        _plan(_site("layer1.relu", kept)).save(tmp_path / name)
        relu_net(tmp_path / name / "model.onnx", polynomial=name == "two")
    one, two = tmp_path / "one", tmp_path / "two"
    both = CliRunner().invoke(app, ["diff", str(one), str(two)])
    assert both.exit_code == 0, both.output
    for text in ("2 → 3 comparisons (+1); 1 of 1 sites changed", "layer1.relu", "models: 8 → 0", "Relu", "1 → 0"):
        assert text in both.output
    found = json.loads(CliRunner().invoke(app, ["diff", str(one), str(two), "--json"]).stdout)
    assert found["plans"]["sites"][0]["newly_kept"] == 2
    assert found["models"]["comparisons"] == [8, 0]
    plans = json.loads(
        CliRunner().invoke(app, ["diff", str(one / "plan.json"), str(two / "plan.json"), "--json"]).stdout
    )
    assert plans["models"] is None
    assert plans["plans"]["comparisons"] == [2, 3]
    models = CliRunner().invoke(app, ["diff", str(one / "model.onnx"), str(two / "model.onnx"), "--all"])
    assert "MatMul" in models.output
    mixed = CliRunner().invoke(app, ["diff", str(one / "plan.json"), str(two / "model.onnx")])
    assert mixed.exit_code == 2
    assert "two of a kind" in " ".join(mixed.output.split())
    (two / "plan.safetensors").write_bytes(b"")
    with pytest.raises(PlanError, match="not those of this plan"):
        CliRunner().invoke(app, ["diff", str(one), str(two)], catch_exceptions=False)
