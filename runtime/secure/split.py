"""Split a model: what everyone may know, and what the server alone has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.files import atomic_path, output_directory
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.model_file import check_model_file
from autorep_fx.runtime.secure.public import PROGRAM_FILE, WEIGHTS_FILE, PublicProgram, TensorSpec
from autorep_fx.runtime.secure.secrets_of import lift_numbers

__all__ = ["Split", "load_weights", "split_model"]

_DIGEST = "program_sha256"


@dataclass(frozen=True)
class Split:
    """A model in two parts.

    Attributes:
        program: For every party.
        weights: For the server: every number of the model by name, float32.
    """

    program: PublicProgram
    weights: dict[str, Array]

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Write ``program.json`` and ``weights.safetensors``; the second is readable for its owner alone.

        Returns:
            The two paths.

        Raises:
            OutputError: The folder or a file cannot be written.
        """
        from safetensors.numpy import save_file

        folder = output_directory(folder)
        weights = folder / WEIGHTS_FILE
        with atomic_path(weights) as temporary:
            save_file(self.weights, temporary, metadata={_DIGEST: self.program.digest})
        weights.chmod(0o600)
        return self.program.save(folder / PROGRAM_FILE), weights


def split_model(path: Path | str) -> Split:
    """Split an ONNX file.

    Every floating-point number becomes a weight: polynomial coefficients, biases, bounds and constant maps too. What
    is left is public: operations, shapes, and integers such as the positions that are kept.

    Args:
        path: The file; its weights may lie beside it.

    Raises:
        ModelFileError: The file is missing, too large, not valid, or for onnxruntime alone.
        SecureProgramError: It holds what cannot be split; everything is listed.
    """
    import onnx

    from autorep_fx.cost.metadata import require_any_engine
    from autorep_fx.cost.onnx_count import count_onnx

    checked = check_model_file(path)
    model = onnx.load(checked.path)
    checked.require_unchanged()
    require_any_engine(model)
    counts: dict[str, int] = {}
    for count in count_onnx(model):
        counts[count.name] = counts.get(count.name, 0) + count.comparisons
    lifted = lift_numbers(model)
    inputs = _inputs(model, lifted.obstacles)
    if lifted.obstacles:
        raise SecureProgramError(
            f"{path} cannot be split into a public program and weights:",
            fix="Models with layer norm do not run in the engine; those with batch norm do. Where an activation has "
            "numbers of its own, compile with another one (substitute: {elu: relu}), or with polynomials alone "
            '(sites: {"kind:elu": {mode: replace}}). Export in float32, with floating-point inputs.',
            obstacles=lifted.obstacles,
        )
    program = PublicProgram(
        inputs=inputs,
        outputs=tuple(value.name for value in model.graph.output),
        constants=lifted.constants,
        weights={name: TensorSpec(value.shape, value.dtype.name) for name, value in lifted.weights.items()},
        nodes=lifted.nodes,
        comparisons=counts,
        leaks=_leaks(counts, lifted.constants, lifted.weights),
    )
    return Split(program, lifted.weights)


def _inputs(model: Any, obstacles: list[str]) -> dict[str, TensorSpec]:
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    result = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype not in (np.dtype("float32"), np.dtype("float16"), np.dtype("float64")):
            obstacles.append(f"input {value.name!r} is {dtype}: only floating-point inputs can be shared")
        shape = tuple(
            int(size.dim_value) if size.HasField("dim_value") else size.dim_param or "batch"
            for size in tensor.shape.dim
        )
        result[value.name] = TensorSpec(shape, dtype.name)
    return result


def _leaks(counts: dict[str, int], constants: dict[str, Array], weights: dict[str, Array]) -> tuple[str, ...]:
    positions = sum(value.size for value in constants.values())
    numbers = sum(value.size for value in weights.values())
    return (
        "The architecture: every operation, its order, its attributes (strides, paddings, axes) and its name.",
        f"The shapes and names of the server's {len(weights)} tensors ({numbers:,} numbers), not their values.",
        f"Which elements are kept and which are replaced, by site: {positions:,} integers of indices and shapes.",
        f"How many comparisons each activation makes: {sum(counts.values()):,} for one sample.",
        "The degree of the polynomial that replaces an element, from the operations that compute it.",
        "The shape of the inputs and of the outputs, and how many samples a query has.",
    )


def load_weights(path: Path | str, program: PublicProgram) -> dict[str, Array]:
    """Read the server's weights, and check that they belong to the program.

    Raises:
        SecureProgramError: They are missing, damaged, or of another program; no value is ever named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise SecureProgramError(
            f"{path} holds no weights.",
            received=str(error).splitlines()[0],
            fix="Pass the weights.safetensors of a split.",
        ) from error
    if digest != program.digest:
        raise SecureProgramError(
            f"{path} holds the weights of another program.",
            received=f"weights for {digest}, a program {program.digest}",
            fix="Use the two files of one split.",
        )
    problems = [f"{name!r} is missing" for name in program.weights if name not in weights]
    problems += [
        f"{name!r} is {weights[name].dtype} {weights[name].shape}, the program says {spec.dtype} {spec.shape}"
        for name, spec in program.weights.items()
        if name in weights and (weights[name].shape != spec.shape or weights[name].dtype.name != spec.dtype)
    ]
    if problems:
        raise SecureProgramError(f"{path} does not fit the program:", fix="Split the model again.", obstacles=problems)
    return weights
