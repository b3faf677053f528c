"""Splitting: no number of the model is in the public file, and the two files belong together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from autorep_fx.errors import SecureProgramError
from autorep_fx.runtime.secure.public import PROGRAM_FILE, WEIGHTS_FILE, load_program
from autorep_fx.runtime.secure.split import load_weights, split_model
from onnx_models import relu_net, save


def test_the_clients_files_hold_no_weight(model: Path, tmp_path: Path) -> None:
    split = split_model(model)
    split.save(tmp_path)
    text = (tmp_path / PROGRAM_FILE).read_text()
    content = text.encode()
    assert len(split.weights) >= 10
    for tensor in onnx.load(model).graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind != "f":
            continue
        for number in values.ravel().tolist():
            if abs(number) in (0.0, 1.0):
                continue
            for dtype in ("<f4", "<f8", ">f4", ">f8"):
                assert np.array(number, dtype).tobytes() not in content, tensor.name
            for digits in (5, 7, 9, 17):
                assert f"{number:.{digits}g}" not in text, tensor.name
    assert not re.findall(r"\d\.\d|\de[-+]\d", json.dumps(json.loads(text) | {"leaks": []}).replace("0.9.5", "")), text


def test_the_search_for_weights_finds_one_that_is_there(model: Path) -> None:
    split = split_model(model)
    number = next(iter(split.weights.values())).ravel()[0]
    assert np.array(number, "<f4").tobytes() in split.program.to_text().encode() + number.tobytes()


def test_reads_back_what_it_wrote(model: Path, tmp_path: Path) -> None:
    split = split_model(model)
    program, weights = split.save(tmp_path)
    assert program.name == PROGRAM_FILE and weights.name == WEIGHTS_FILE
    assert weights.stat().st_mode & 0o077 == 0
    read = load_program(program)
    assert read.digest == split.program.digest
    assert read.to_text() == split.program.to_text()
    for name, value in load_weights(weights, read).items():
        assert np.array_equal(value, split.weights[name])


def test_says_what_leaks_and_counts_what_is_kept(model: Path) -> None:
    program = split_model(model).program
    assert sum(program.comparisons.values()) == autorep_count(model)
    assert len(program.leaks) >= 5
    assert any("kept" in leak for leak in program.leaks) and any("degree" in leak for leak in program.leaks)


def autorep_count(model: Path) -> int:
    """Comparisons as the file says."""
    return int(next(p.value for p in onnx.load(model).metadata_props if p.key == "autorep_fx.comparisons"))


def test_weights_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    split = split_model(model)
    _, weights = split.save(tmp_path)
    other = split_model(relu_net(tmp_path / "other.onnx")).program
    with pytest.raises(SecureProgramError, match="weights of another program"):
        load_weights(weights, other)


def test_a_damaged_or_foreign_program_is_refused(model: Path, tmp_path: Path) -> None:
    program, _ = split_model(model).save(tmp_path)
    text = program.read_text()
    for content, message in (
        (text[: len(text) // 2], "is no public program"),
        ("{}", "another kind"),
        (text.replace('"format_version":1', '"format_version":9'), "format_version 9"),
        (text.replace('"inputs":["x"', '"inputs":["nobody"'), "reads 'nobody', which nothing makes"),
        (text.replace('"dtype":"int64"', '"dtype":"float32"', 1), "is damaged"),
    ):
        program.write_text(content)
        with pytest.raises(SecureProgramError, match=re.escape(message)):
            load_program(program)


def test_numbers_among_attributes_become_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc", alpha=0.37, beta=1.75),
        helper.make_node("BatchNormalization", ["h", "g", "s", "m", "v"], ["n"], name="bn", epsilon=0.0625),
        helper.make_node("LeakyRelu", ["n"], ["y"], name="leaky", alpha=0.23),
    ]
    random = np.random.default_rng(0)
    tensors = {"w": random.standard_normal((4, 4)), **{k: random.random(4) + 0.5 for k in "bgsmv"}}
    path = save(
        tmp_path / "m.onnx", nodes, {"x": ("float32", ["batch", 4])}, {"y": ("float32", ["batch", 4])},
        {name: value.astype("float32") for name, value in tensors.items()},
    )  # fmt: skip
    split = split_model(path)
    text = split.program.to_text()
    assert not any(number in text for number in ("0.37", "1.75", "0.0625", "0.23"))
    assert set(split.weights) == {"fc.alpha_w", "fc.beta_b", "bn.scale", "bn.shift", "leaky.alpha"}


def test_all_that_cannot_be_split_is_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Elu", ["x"], ["a"], name="one", alpha=0.5),
        helper.make_node("Selu", ["a"], ["b"], name="two", gamma=1.5),
        helper.make_node("HardSigmoid", ["b"], ["c"], name="three", alpha=0.3, beta=0.5),  # a slope of its own
        helper.make_node("HardSigmoid", ["c"], ["y"], name="four"),  # ONNX's default is another than torch's
    ]
    shape = ("float32", ["batch", 4])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape})
    with pytest.raises(SecureProgramError) as caught:
        split_model(path)
    assert len(caught.value.obstacles) == 4
    assert "four (HardSigmoid): its attribute 'alpha'" in str(caught.value)
    assert "one (Elu): its attribute 'alpha'" in str(caught.value)


def test_a_layer_norm_is_named_as_such(tmp_path: Path) -> None:
    """Not as a number that would be public: no other export would help."""
    nodes = [helper.make_node("LayerNormalization", ["x", "g"], ["y"], name="norm", epsilon=1e-6)]
    shape = ("float32", ["batch", 4])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, {"g": np.ones(4, np.float32)})
    with pytest.raises(SecureProgramError, match="the engine has no form for what divides by the deviation"):
        split_model(path)
