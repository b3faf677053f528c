"""Model files are untrusted: what is refused before onnxruntime sees them, and by what reason."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from autorep_fx.errors import ModelFileError
from autorep_fx.runtime import Session
from autorep_fx.runtime.model_file import check_model_file
from onnx_models import beside, relocate, relu_net

X = np.ones((2, 4), np.float32)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "is absolute"),
        ("C:\\weights.bin", "is absolute"),
        ("\\\\server\\share\\weights.bin", "is absolute"),
        ("../model.onnx.data", "leaves the folder"),
        ("parts/../../model.onnx.data", "leaves the folder"),
        ("parts\\..\\..\\model.onnx.data", "leaves the folder"),
        ("", "is no file name"),
        ("missing.data", "does not exist"),
        ("parts", "no ordinary file"),
        ("link.data", "symbolic link"),
        ("linked/model.onnx.data", "symbolic link"),
        ("*/_ORT_MEM_ADDR_/*", "does not exist"),  # how onnxruntime names an address in its own memory
    ],
)
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str, reason: str) -> None:
    """An absolute path, a way up, a link, a folder: each by its reason, and the location is shown."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = beside(folder / "model.onnx")
    (tmp_path / "model.onnx.data").write_bytes((folder / "model.onnx.data").read_bytes())
    (folder / "parts").mkdir()
    (folder / "link.data").symlink_to(tmp_path / "model.onnx.data")
    (folder / "linked").symlink_to(folder)
    relocate(path, location)
    with pytest.raises(ModelFileError, match=reason) as error:
        Session(path, device="cpu")
    assert repr(location) in str(error.value)


def test_weights_in_the_folder_are_loaded(tmp_path: Path) -> None:
    """Beside the file, or in a folder below it."""
    expected = Session(relu_net(tmp_path / "whole.onnx"), device="cpu")(X)
    path = beside(tmp_path / "model.onnx")
    np.testing.assert_array_equal(Session(path, device="cpu")(X), expected)
    (tmp_path / "parts").mkdir()
    (tmp_path / "model.onnx.data").rename(tmp_path / "parts" / "w.data")
    relocate(path, "parts/w.data")
    np.testing.assert_array_equal(Session(path, device="cpu")(X), expected)


def test_a_tensor_that_is_hidden_in_an_attribute_is_found(tmp_path: Path) -> None:
    """External data of a constant inside of a branch."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    info = helper.make_tensor_value_info("c", 1, [3])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [info])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    x, y = helper.make_tensor_value_info("x", 9, []), helper.make_tensor_value_info("y", 1, [3])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"'\.\./secret', which leaves the folder"):
        check_model_file(tmp_path / "m.onnx")


def test_the_size_is_limited(tmp_path: Path) -> None:
    """Of the file, and of the file with its data; the error names the number that would do."""
    path = relu_net(tmp_path / "whole.onnx")
    size = path.stat().st_size
    with pytest.raises(ModelFileError, match=f"{size:,} bytes[\\s\\S]*max_bytes={size} or more"):
        Session(path, device="cpu", max_bytes=size - 1)
    assert Session(path, device="cpu", max_bytes=size)(X).shape == (2, 3)
    path = beside(tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="with its external data"):
        Session(path, device="cpu", max_bytes=path.stat().st_size + 1)
    assert Session(path, device="cpu", max_bytes=None)(X).shape == (2, 3)


def test_digests_are_checked(tmp_path: Path) -> None:
    """Of a file, and of each file of a model; a digest that does not cover the weights is refused."""
    path = relu_net(tmp_path / "whole.onnx")
    assert Session(path, device="cpu", sha256=_sha256(path).upper())(X).shape == (2, 3)
    with pytest.raises(ModelFileError, match="not the file that was expected"):
        Session(path, device="cpu", sha256="0" * 64)
    path = beside(tmp_path / "model.onnx")
    data = tmp_path / "model.onnx.data"
    digests = {path.name: _sha256(path), data.name: _sha256(data), "settings.yaml": "of no interest"}
    assert Session(path, device="cpu", sha256=digests)(X).shape == (2, 3)
    with pytest.raises(ModelFileError, match=r"weights in model\.onnx\.data"):
        Session(path, device="cpu", sha256=_sha256(path))
    with pytest.raises(ModelFileError, match=r"No digest was given for model\.onnx\.data"):
        Session(path, device="cpu", sha256={path.name: _sha256(path)})
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data is not the file"):
        Session(path, device="cpu", sha256=digests)


def test_what_is_not_onnx_is_refused(tmp_path: Path) -> None:
    """Bytes of another kind, a graph that the checker refuses, an operator that does not exist, and no file."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelFileError, match="not a valid ONNX"):
        Session(path, device="cpu")
    relu_net(path)
    model = onnx.load(path)
    model.graph.node[0].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"not a valid ONNX[\s\S]*'nowhere'"):
        Session(path, device="cpu")
    model.graph.node[0].input[0] = "x"
    model.graph.node[1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"onnxruntime cannot load"):
        Session(path, device="cpu")
    with pytest.raises(ModelFileError, match="no model file"):
        Session(tmp_path, device="cpu")


def test_a_file_that_is_exchanged_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    """What was checked is what was loaded."""
    path = relu_net(tmp_path / "m.onnx")
    checked = check_model_file(path)
    checked.require_unchanged()
    other = relu_net(tmp_path / "other.onnx", seed=1)
    os.replace(other, path)
    with pytest.raises(ModelFileError, match="changed while it was loaded"):
        checked.require_unchanged()
