"""Settings: what is refused and how, what is filled in, and that files read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from autorep_fx.budget import Budget
from autorep_fx.config import DEFAULT_PASSES, OPTIONAL_STAGES, STAGES, PassConfig, PipelineConfig, TransformConfig
from autorep_fx.config_io import load_pipeline, parse_config, to_yaml
from autorep_fx.errors import ConfigError

BASE: dict[str, Any] = {"model": {"zoo": "resnet20"}, "budget": "5%"}


def pipeline(**changes: Any) -> PipelineConfig:
    config = parse_config({**BASE, **changes}, PipelineConfig)
    assert isinstance(config, PipelineConfig)
    return config


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        pipeline(**changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "path", "nearest"),
    [
        ({"gate": {}}, "gate", "gates"),
        ({"gates": {"granularty": "site"}}, "gates.granularty", "granularity"),
        ({"polynomials": {"sigma_flor": 0.1}}, "polynomials.sigma_flor", "sigma_floor"),
        ({"training": {"learning": 1}}, "training.learning", None),
        ({"export": {"opsets": 20}}, "export.opsets", "opset"),
        ({"sites": {"layer*": {"mod": "gate"}}}, "sites.layer*.mod", "mode"),
        ({"sites": {"model": {"degre": 1}}}, "sites.model.degre", "degree"),
        ({"model": {"zoo": "a", "arg": {}}}, "model.arg", "args"),
        ({"data": {"batchsize": 2}}, "data.batchsize", "batch_size"),
        ({"outputs": {"onx": True}}, "outputs.onx", "onnx"),
        ({"stages": [{"stage": "capture", "passs": []}]}, "stages.0.passs", "passes"),
        (
            {"stages": [{"stage": "lower", "passes": [{"name": "x", "option": {}}]}]},
            "stages.0.passes.0.option",
            "options",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(changes: dict[str, Any], path: str, nearest: str | None) -> None:
    """At every level, the message has the path of the key, the nearest valid key and all valid ones."""
    message = refusal(**changes)
    [line] = [line for line in message.splitlines() if "unknown key" in line]
    assert line.strip().startswith(f"{path}: unknown key.")
    assert "Valid keys here: " in line
    if nearest is not None:
        assert f"Did you mean '{nearest}'" in line
        assert nearest in line.partition("Valid keys here: ")[2]


def test_all_problems_are_listed_at_once() -> None:
    """Three mistakes in three sections are three lines of one error."""
    message = refusal(gates={"band": -1, "granularity": "pixel"}, training={"epoch": 3}, budget=True)
    for path in ("gates.band", "gates.granularity", "training.epoch", "budget"):
        assert sum(line.strip().startswith(f"{path}:") for line in message.splitlines()) == 1
    assert "4 problem(s)" in message
    assert "received -1" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gates": None}, "gates"),
        ({"gates": 5}, "gates"),
        ({"polynomials": {"degree": 3}}, "polynomials.degree"),
        ({"training": {"reach": 0}}, "training.reach"),
        ({"training": {"lr": math.inf}}, "training.lr"),
        ({"training": {"lr": math.nan}}, "training.lr"),
        ({"gates": {"band": math.inf}}, "gates.band"),
        ({"calibration": {"samples": 0}}, "calibration.samples"),
        ({"export": {"opset": 17}}, "export.opset"),
        ({"budget": 12900.0}, "budget"),
        ({"model": {}}, "exactly one of 'zoo' and 'factory'"),
        ({"model": {"zoo": "a", "factory": "b:c"}}, "exactly one of 'zoo' and 'factory'"),
        ({"stages": None}, "stages"),
        ({"stages": [{"stage": "lower", "passes": None}]}, "stages.0.passes"),
        ({"stages": [{"stage": "lower", "passes": 5}]}, "stages.0.passes"),
        ({"stages": [{"stage": "lower", "passes": "fold_batchnorm"}]}, "stages.0.passes"),
        ({"stages": ["lowr"]}, "Did you mean 'lower'"),
        ({"stages": [{"stage": "capture", "passes": ["x"]}]}, "takes no passes"),
        ({1: 2}, "1"),
    ],
)
def test_a_wrong_value_is_refused_at_its_path(changes: dict[Any, Any], words: str) -> None:
    """Wrong types, values out of range and numbers that are not finite are typed errors."""
    with pytest.raises(ConfigError) as caught:
        parse_config({**BASE, **changes}, PipelineConfig)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [5, "gates", [("gates", {})]])
def test_settings_are_a_mapping(value: object) -> None:
    """Anything else than a mapping is refused with an example of one."""
    with pytest.raises(ConfigError, match="granularity"):
        parse_config(value)


def test_nothing_means_the_defaults() -> None:
    """None and an empty mapping are the defaults; a finished config passes through."""
    config = parse_config(None)
    assert config == parse_config({}) == TransformConfig()
    assert parse_config(config) is config


def test_sections_cannot_be_changed() -> None:
    """Settings are inert: an assignment fails."""
    with pytest.raises(ValueError, match="frozen"):
        pipeline().gates.band = 1.0  # type: ignore[misc]


def test_model_and_budget_must_be_there() -> None:
    """An empty file says both that are missing."""
    with pytest.raises(ConfigError) as caught:
        parse_config(None, PipelineConfig)
    assert "model: Field required" in str(caught.value)
    assert "budget: Field required" in str(caught.value)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'1e-3'", "1E-3"])
def test_yaml_numbers_are_numbers(text: str) -> None:
    """PyYAML reads 1e-3 as a string: it is a number in a setting and in a budget all the same."""
    values = yaml.safe_load(f"training: {{lr: {text}}}\nbudget: {text}\n")
    config = pipeline(**values)
    assert config.training.lr == 0.001
    assert config.budget == Budget.fraction(0.001)


@pytest.mark.parametrize("written", [32, "32"])
def test_a_precision_may_be_written_as_a_number(written: object) -> None:
    """As YAML reads it; 64 is none all the same."""
    assert pipeline(execution={"precision": written}).execution.precision == "32"
    with pytest.raises(ConfigError, match="precision"):
        pipeline(execution={"precision": 64})


FULL: dict[str, Any] = {
    "model": {"factory": "package.module:make", "args": {"width": 8}, "checkpoint": "weights.safetensors"},
    "data": {"name": "cifar", "args": {"folder": "data"}, "batch_size": 7, "augment": False},
    "budget": {"comparisons": "12.9K"},
    "gates": {"granularity": "channel", "init": "random", "band": 1e-7},
    "polynomials": {"degree": 1, "c2_bound": 3},
    "sites": {"layer1.*": {"mode": "ignore"}, "layer1.0.relu": {"granularity": "site", "degree": 0}},
    "stages": [name for name in STAGES if name != "finetune"],
    "verification": "off",
    "outputs": {"report": False},
    "seed": 3,
    "device": "cpu",
}


@pytest.mark.parametrize("values", [BASE, FULL, {**BASE, "data": None}], ids=["defaults", "full", "no data"])
def test_the_filled_in_file_reads_back(tmp_path: Path, values: dict[str, Any]) -> None:
    """Written with all defaults and read again, the settings are equal, and writing them again changes nothing."""
    config = parse_config(values, PipelineConfig)
    text = to_yaml(config)
    file = tmp_path / "pipeline.yaml"
    file.write_text(text, encoding="utf-8")
    again = load_pipeline(file)
    assert again == config
    assert to_yaml(again) == text
    written = yaml.safe_load(text)
    assert set(written) == set(PipelineConfig.model_fields)
    assert set(written["training"]) == set(type(config.training).model_fields)


def test_the_saved_budget_is_a_mapping() -> None:
    """Saved files say what kind of number it is."""
    assert yaml.safe_load(to_yaml(pipeline()))["budget"] == {"fraction": 0.05}
    assert yaml.safe_load(to_yaml(pipeline(budget="12.9K")))["budget"] == {"comparisons": 12900}


def test_order_of_site_settings_survives(tmp_path: Path) -> None:
    """Later entries win, so their order is part of the meaning."""
    names = ["z*", "a", "m*", "b"]
    config = pipeline(sites={name: {} for name in names})
    assert list(yaml.safe_load(to_yaml(config))["sites"]) == names


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"a: [", "config init"), (b"\xff\xfe\x00", "config init")]
)
def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Missing, not YAML, not text: the error names the file."""
    file = tmp_path / "pipeline.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"pipeline\.yaml") as caught:
        load_pipeline(file)
    assert words in str(caught.value)


def test_the_part_for_transform_is_all_that_transform_takes() -> None:
    """A pipeline's settings and the same settings given to transform are equal."""
    config = parse_config(FULL, PipelineConfig)
    assert isinstance(config, PipelineConfig)
    part = {key: value for key, value in FULL.items() if key in TransformConfig.model_fields}
    assert config.transform_config() == parse_config(part)
    assert type(config.transform_config()) is TransformConfig


def test_stages_by_default() -> None:
    """All stages in order, with the default passes of those that have any."""
    config = TransformConfig()
    assert tuple(stage.stage for stage in config.stages) == STAGES
    assert {s.stage: tuple(p.name for p in s.passes) for s in config.stages if s.passes} == DEFAULT_PASSES
    assert all(config.has_stage(name) for name in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_only_optional_stages_can_be_left_out(name: str) -> None:
    """Leaving one out works for the optional stages and is refused by name for the others."""
    stages = [stage for stage in STAGES if stage != name]
    if name in OPTIONAL_STAGES:
        config = parse_config({"stages": stages})
        assert not config.has_stage(name)
        assert config.passes_of(name) == ()
    else:
        with pytest.raises(ConfigError, match=f"{name} cannot be left out"):
            parse_config({"stages": stages})


@pytest.mark.parametrize("stages", [(*STAGES[:-2], STAGES[-1], STAGES[-2]), (*STAGES, STAGES[-1])])
def test_stages_run_once_and_in_order(stages: tuple[str, ...]) -> None:
    """Two stages swapped, or one twice, is refused with the order."""
    with pytest.raises(ConfigError, match=", ".join(STAGES)):
        parse_config({"stages": stages})


def test_pass_lists() -> None:
    """A pass is a name, or a name with options; a given list replaces the default one, also an empty list."""
    lower = {"stage": "lower", "passes": ["lower_gates", {"name": "package.module:MyPass", "options": {"k": 2}}]}
    stages = [lower if name == "lower" else name for name in STAGES]
    config = parse_config({"stages": stages})
    expected = (PassConfig(name="lower_gates"), PassConfig(name="package.module:MyPass", options={"k": 2}))
    assert config.passes_of("lower") == expected
    assert config.passes_of("canonicalize") == (PassConfig(name="canonicalize"),)
    empty = [{"stage": "lower", "passes": []} if name == "lower" else name for name in STAGES]
    assert parse_config({"stages": empty}).passes_of("lower") == ()


TYPES = {
    "object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def mismatch(schema: dict[str, Any], value: Any, root: dict[str, Any], path: str = "") -> str | None:
    """The path at which ``value`` does not fit; a reader of the part of JSON schema that pydantic writes."""
    if "$ref" in schema:
        return mismatch(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, path)
    if "anyOf" in schema:
        return None if any(mismatch(s, value, root, path) is None for s in schema["anyOf"]) else path
    if "enum" in schema and value not in schema["enum"]:
        return path
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return path
    lowest, highest = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if kind in ("integer", "number") and not lowest <= value <= highest:
        return path
    missing = [key for key in schema.get("required", ()) if kind == "object" and key not in value]
    if missing:
        return f"{path}.{missing[0]}"
    for key, inner, part in children(schema, value):
        inside = f"{path}.{key}"
        found = mismatch(inner, part, root, inside) if isinstance(inner, dict) else (None if inner else inside)
        if found is not None:
            return found
    return None


def children(schema: dict[str, Any], value: Any) -> list[tuple[str, Any, Any]]:
    """Key, schema (or whether anything goes) and value of every part."""
    if schema.get("type") == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return [(key, known.get(key, others), part) for key, part in value.items()]
    if schema.get("type") == "array":
        return [(str(i), schema.get("items", True), part) for i, part in enumerate(value)]
    return []


def test_the_schema_takes_the_default_file() -> None:
    """The JSON schema accepts the file that is written for the defaults, and a full one."""
    schema = PipelineConfig.model_json_schema()
    for values in (BASE, FULL):
        document = yaml.safe_load(to_yaml(parse_config(values, PipelineConfig)))
        assert mismatch(schema, document, schema) is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"gate": {}}, ".gate"),
        ({"gates": {"granularity": "pixel"}}, ".gates.granularity"),
        ({"training": {"lr": "fast"}}, ".training.lr"),
        ({"polynomials": {"degree": 3}}, ".polynomials.degree"),
        ({"model": 5}, ".model"),
        ({"sites": {"relu": {"mod": "gate"}}}, ".sites.relu.mod"),
        ({"stages": [{"passes": []}]}, ".stages.0.stage"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(change: dict[str, Any], path: str) -> None:
    """The schema knows the keys, types and bounds of every level, and so does the checker of this test."""
    schema = PipelineConfig.model_json_schema()
    assert mismatch(schema, {**BASE, **change}, schema) == path


def test_every_top_level_key_is_in_the_schema() -> None:
    """An editor that completes by the schema offers every section."""
    schema = PipelineConfig.model_json_schema()
    assert set(schema["properties"]) == set(PipelineConfig.model_fields)
    assert set(schema["required"]) == {"model", "budget"}
    assert schema["additionalProperties"] is False
