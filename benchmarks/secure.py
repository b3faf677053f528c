"""What a compiled model costs under the protocols, against its own ReLU export run as it comes.

    python benchmarks/secure.py --model lenet --queries 5
    python benchmarks/secure.py --model resnet18 --protocols semi2k aby3 --queries 1
    python benchmarks/secure.py --model resnet18 --protocols cheetah --forms stock linear --timeout 3600

All parties are simulated in one process, on one sample per query. Forms of a model:

    stock      its ReLU export as the engine runs it unchanged: its own convolutions, weights opened in every query
    relu       the same export in a session of this package
    quadratic  compiled to the budget without data, every replaced element by a polynomial of degree 2
    mixed      the same, of degree 1 in the second half of the sites
    linear     the same, of degree 1 everywhere
    half       quadratics, with all kept elements at every second site: a site that keeps any pays for all its messages

Weights are random, with norm statistics of random inputs: what is sent does not depend on them, and accuracy is not
measured. After the set-up a first query is run, which in SEMI2K opens the weights and in CHEETAH pays for the rest of
the set-up; then come the queries that are reported, in turns with the other forms of a call, with the median of their
seconds. A comparison's bytes are checked by the package in every run. Rows are kept in
`benchmarks/results/secure.jsonl`, one per model, form, protocol and link, and not run again unless `--again`; the table
is `secure.md`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from secure_report import RESULTS, conditions, have, keep, limited, write_table
from secure_stock import StockSession

import autorep_fx
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.predict import predict_session
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.model_specs import build_model
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.results import Step
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model
from autorep_fx.runtime.session import Session

# Model → specification, shape of a sample, budget: 2.6 % of ResNet-18's comparisons, 10 % of LeNet's.
MODELS = {"lenet": ("zoo:lenet", (1, 28, 28), 650), "resnet18": ("zoo:resnet18", (3, 32, 32), 12_900)}
FORMS = ("stock", "relu", "quadratic", "mixed", "linear", "half")
PROTOCOLS = ("semi2k", "aby3", "cheetah")
_SAID = ("model", "form", "protocol", "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet", choices=list(MODELS))
    parser.add_argument("--forms", nargs="+", default=["stock", "relu", "quadratic", "linear"], choices=FORMS)
    parser.add_argument("--protocols", nargs="+", default=["semi2k", "aby3"], choices=PROTOCOLS)
    parser.add_argument("--queries", type=int, default=1, help="queries that are timed, after the first")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds that a party waits for a message")
    parser.add_argument("--work", type=Path, default=Path("build/secure"), help="exported models, made once")
    parser.add_argument("--again", action="store_true", help="run rows anew that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    limited()
    for protocol in options.protocols:
        keys = {form: {"model": options.model, "form": form, "protocol": protocol, "link": "memory"}
                for form in options.forms}  # fmt: skip
        wanted = [form for form, key in keys.items() if options.again or not have(options.out, key)]
        for form, found in measured(options.model, wanted, protocol, options).items():
            row = {**keys[form], **found, **conditions()}
            keep(options.out, row)
            print({name: row[name] for name in (*_SAID, "seconds", "first_query_bytes")}, file=sys.stderr)
    print(write_table(options.out))


def exported(model: str, form: str, folder: Path) -> Path:
    """The ONNX file of a model in one form."""
    spec, shape, budget = MODELS[model]
    whole = form in ("stock", "relu")
    path = folder / f"{model}-{'relu' if whole else form}.onnx"
    if path.is_file():
        return path
    torch.manual_seed(0)
    module, x = build_model(spec), torch.randn(8, *shape)
    with torch.no_grad():
        module.train()(x)  # norm statistics of its own
    config: dict[str, Any] = {"polynomials": {"degree": 1 if form == "linear" else 2}}
    sites = [site.name for site in autorep_fx.inspect(module.eval(), x).sites if site.gateable]
    if form == "mixed":
        config["sites"] = {name: {"degree": 1} for name in sites[len(sites) // 2 :]}
    if form == "half":
        config["sites"] = {name: {"mode": "replace"} for name in sites[::2]}
    compiled = autorep_fx.transform(
        module.eval(), "100%" if whole else budget, example_inputs=x, config={} if whole else config
    )
    plan = path.with_suffix(".plan")
    plan.mkdir(parents=True, exist_ok=True)
    compiled.plan.save(plan)
    compiled.export(path)
    return path


def shares(model: str, form: str, folder: Path) -> dict[str, int]:
    """Elements of all sites: kept, replaced by a quadratic, by a straight line."""
    exported(model, form, folder)
    plan = autorep_fx.Plan.load(folder / f"{model}-{'relu' if form == 'stock' else form}.plan")
    found = {"kept": 0, "quadratic": 0, "linear": 0}
    for site in plan.sites:
        size = int(np.prod(site.shape))
        kept = int(np.broadcast_to(site.kept, site.shape).sum())
        found["kept"] += kept
        found["quadratic" if site.fitted_degree == 2 else "linear"] += size - kept
    return found


@dataclass
class Started:
    """A session after its first query."""

    session: SimulatedSession
    path: Path
    first: Step
    max_error: float
    later: list[Step] = field(default_factory=list)


def measured(model: str, forms: list[str], protocol: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A row per form: set-up, first query, and the queries after it, for which the forms take turns."""
    x = np.random.default_rng(0).standard_normal((1, *MODELS[model][1])).astype(np.float32)
    sessions = {form: started(exported(model, form, options.work), form, protocol, x, options) for form in forms}
    for _ in range(options.queries):
        for item in sessions.values():
            item.later.append(item.session.query([x])[1])
    return {
        form: {"elements": shares(model, form, options.work), **figures(item, form, Settings(protocol))}
        for form, item in sessions.items()
    }


def started(path: Path, form: str, protocol: str, x: Any, options: argparse.Namespace) -> Started:
    """Set a session up, run the first query and compare it with onnxruntime."""
    make = StockSession if form == "stock" else SimulatedSession
    session = make(split_model(path), Settings(protocol), timeout=options.timeout)
    [y], first = session.query([x])
    [reference] = Session(path, "cpu").run(x)
    return Started(session, path, first, float(np.abs(y - reference).max()))


def figures(item: Started, form: str, settings: Settings) -> dict[str, Any]:
    """What a row says of a session."""
    step, first, setup = item.later[-1], item.first, item.session.setup
    seconds = [query.seconds for query in item.later]
    return {
        "comparisons": step.comparisons, "comparison_bytes": step.counters.kernels[settings.of.compares].bytes,
        "comparison_bytes_each": settings.comparison_bytes, "bytes": step.counters.bytes,
        "messages": step.counters.messages, "messages_by_rank": sorted(step.counters.by_run),
        "first_query_bytes": first.counters.bytes, "first_query_seconds": first.seconds,
        "setup_bytes": setup.counters.bytes if setup else 0, "setup_seconds": setup.seconds if setup else 0.0,
        "seconds": statistics.median(seconds), "all_seconds": seconds, "n": len(seconds),
        "compile_seconds": first.compile_seconds, "predicted": predicted(item.path, form, settings, len(seconds)),
        "max_error": item.max_error, "load": os.getloadavg()[0], "share_bytes": step.share_bytes,
    }  # fmt: skip


def predicted(path: Path, form: str, settings: Settings, queries: int) -> dict[str, int | None]:
    """Bytes and messages of the last of so many queries after the first, over all parties."""
    costs = load_profile().protocol(settings.protocol)
    stock = form == "stock"
    work = secure_work(load_model(path), 1, protocol="" if stock else settings.protocol)
    last = predict_session([work] * (queries + 1), settings.protocol, costs)[-1]
    opened = last.setup_bytes - costs.setup_bytes if stock else 0  # it opens its weights every time
    sent = None if last.bytes is None else last.bytes + opened
    return {"bytes": sent, "messages": last.messages_total}


if __name__ == "__main__":
    main()
