"""Measure what the engine's operations cost, as a cost profile."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from autorep_fx.cost.profile import Compute, FixedPoint, OperationCost, Profile, ProtocolProfile
from autorep_fx.runtime.secure.bench import Bench
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.fitting import fit_elements, measure_local, on_machine
from autorep_fx.runtime.secure.measurements import solve, solve_seconds, take
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["MATRICES", "SIZES", "calibrate"]

#: Elements of a call.
SIZES = (256, 4096, 65_536)
#: Rows, terms and columns of products of matrices: small ones, and those of convolutions of a residual network.
MATRICES = (
    (16, 16, 16), (64, 16, 16), (16, 64, 16), (16, 16, 64), (1, 400, 120), (196, 72, 16), (128, 128, 128),
    (1024, 576, 64), (256, 1152, 128), (64, 2304, 256), (16, 4608, 512), (1024, 64, 576),
)  # fmt: skip
_REPEATS = 9


def calibrate(
    protocols: Sequence[str], *, sizes: Sequence[int] = SIZES, repeats: int = _REPEATS, timeout: float = 600.0
) -> Profile:
    """Measure protocols by simulated parties.

    Args:
        protocols: Their names.
        sizes: Elements of a call, ascending; two at least, to tell a call from its elements.
        repeats: Runs of each, for the seconds.
        timeout: Seconds that a party waits for another.

    Raises:
        EngineMissingError: The engine is not there.
        ProtocolError: A protocol is unknown, or its bytes are not what the cost model can say.
    """
    require_spu()
    settings = [Settings(name) for name in protocols]
    version = importlib.metadata.version("spu")
    ring = settings[0]
    return Profile(
        format="autorep-fx cost profile", format_version=1, name=f"spu-{version}, calibrated",
        fixed_point=FixedPoint(ring_bits=ring.ring_bits, fraction_bits=ring.fraction_bits),
        unit="bytes over all parties; per element, and for products of matrices per element of each factor and of the "
        "result; seconds of computation by simulated parties",
        protocols={one.protocol: _protocol(one, version, sizes, repeats, timeout) for one in settings},
    )  # fmt: skip


def _protocol(settings: Settings, version: str, sizes: Sequence[int], repeats: int, timeout: float) -> ProtocolProfile:
    from autorep_fx.runtime.secure.calibrate_cheetah import measure_cheetah
    from autorep_fx.runtime.secure.operations import elementwise, in_step

    source = f"spu {version}, ring of {settings.ring_bits} bits"
    if settings.of.warms_up:
        return measure_cheetah(settings, source, repeats=repeats, timeout=timeout)
    bench = Bench(settings, timeout=timeout)
    operations = {}
    for workload in elementwise(settings):
        for name, kernels in workload.kernels.items():
            samples = [take(bench, in_step(workload), kernels, size, repeats) for size in sizes]
            operations[name] = fit_elements(sizes, samples, source, tolerance=0.0)
    operations["matmul"] = _matmul(bench, source, repeats)
    return ProtocolProfile(
        parties=settings.of.parties, note=settings.of.caveat or settings.of.corruption, setup_bytes=0, setup_messages=0,
        local=measure_local(bench, sizes, source, repeats), operations=operations,
    )  # fmt: skip


def _matmul(bench: Bench, source: str, repeats: int) -> OperationCost:
    """Costs per element of both factors and of the result."""
    from autorep_fx.runtime.secure.operations import in_step, product_of

    samples = [take(bench, in_step(product_of(sizes)), ("mmul_aa",), 0, repeats) for sizes in MATRICES]
    rows = [(m * k, k * n, m * n, 1) for m, k, n in MATRICES]
    left, right, result, call = (round(v, 6) for v in solve(rows, [sample.bytes for sample in samples]))
    effort = [(1.0, m * n, m * k * n) for m, k, n in MATRICES]
    each, element, multiply = solve_seconds(effort, [sample.seconds for sample in samples])
    first = samples[0]
    return OperationCost(
        left=left, right=right, result=result, call=call, messages=first.messages, messages_total=first.messages_total,
        status="measured", source=f"{source}; {len(MATRICES)} shapes from {MATRICES[0]} to {MATRICES[-1]}",
        seconds=Compute(call=each, element=element, multiply=multiply, status="measured", source=on_machine()),
    )  # fmt: skip
