"""Measure CHEETAH, which draws from reserves, cuts calls into pieces and multiplies matrices homomorphically."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from autorep_fx.cost.packing import Packing, ciphertexts
from autorep_fx.cost.profile import Compute, OperationCost, ProtocolProfile, Reserve, Split
from autorep_fx.errors import ProtocolError
from autorep_fx.runtime.secure.bench import Bench
from autorep_fx.runtime.secure.executables import first_use
from autorep_fx.runtime.secure.fitting import fit_elements, measure_local, on_machine
from autorep_fx.runtime.secure.measurements import Sample, random_values, rounded, sample, solve, solve_seconds, take
from autorep_fx.runtime.secure.operations import elementwise, product_of
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["measure_cheetah"]

# Elements below which the engine cuts no call, and the degree of its polynomials: from its source (state.cc and
# cheetah_dot.cc of SPU), where the pieces and the ciphertexts that are counted here follow from them.
_PIECE, _DEGREE = 2048, 8192
# From twice as many elements on, a product is no longer drawn from the reserve (arithmetic.cc).
_DIRECT = 2 * _DEGREE
# Comparisons that one message of a transfer is enough for: found by counting, at 32,768 to 131,072 in two pieces.
_CHUNK = 16_384
_SIZES = (256, 1024, _PIECE)
_MATRICES = (
    (1, 16, 10), (8, 64, 10), (100, 9, 4), (16, 16, 16), (784, 9, 8), (1024, 27, 16), (64, 150, 16), (1, 256, 120),
    (1, 400, 120), (196, 72, 16), (64, 1152, 128), (16, 1152, 512),
)  # fmt: skip
# Ciphertexts that go, and those that come back.
_SERIAL = 2
# Runs of comparisons after which a reserve that lasts longer is left out.
_PATIENCE = 200


def measure_cheetah(settings: Settings, source: str, *, repeats: int, timeout: float) -> ProtocolProfile:
    """Costs under CHEETAH.

    Raises:
        ProtocolError: What the engine sends is not what the cost model can say.
    """
    bench = Bench(settings, timeout=timeout)
    setup = bench.run(first_use, random_values([(1,)]))[0]
    operations = {}
    for workload in elementwise(settings):
        for name, kernels in workload.kernels.items():
            if name != "product":
                samples = [take(bench, workload, kernels, size, repeats) for size in _SIZES]
                operations[name] = fit_elements(_SIZES, samples, source, tolerance=0.02)
    split = Split(elements=_PIECE, most=_pieces(bench, settings, operations["compare"]))
    operations = {name: cost.model_copy(update={"split": split}) for name, cost in operations.items()}
    chunked = split.model_copy(update={"chunk": _chunk(bench, settings, split, operations["compare"])})
    operations["compare"] = operations["compare"].model_copy(update={"split": chunked})
    refills = _refills(bench, settings, operations["compare"])
    operations["compare"] = operations["compare"].model_copy(update={"reserve": refills})
    operations["product"] = _product(bench, settings, source)
    operations["matmul"] = _matmul(bench, source, repeats)
    sent = sum(line.bytes for line in setup.lines if line.ranks)
    return ProtocolProfile(
        parties=settings.of.parties, note="two parties, semi-honest, no dealer", setup_bytes=sent,
        setup_messages=max(line.messages for line in setup.lines if line.ranks),
        local=measure_local(bench, _SIZES, source, repeats), operations=operations,
    )  # fmt: skip


def _pieces(bench: Bench, settings: Settings, compare: OperationCost) -> int:
    """How many pieces the engine cuts a large call into, up to 8 of them."""
    found = _samples(bench, settings, "compare", 8 * _PIECE, 2)[-1]
    return max(round(found.messages / (compare.messages or 1)), 1)


def _chunk(bench: Bench, settings: Settings, split: Split, compare: OperationCost) -> int | None:
    """Whether pieces of comparisons twice as large as a transfer holds take a message more."""
    found = _samples(bench, settings, "compare", 2 * _CHUNK * split.most, 3)
    more = min(run.messages_total for run in found) - split.most * (compare.messages_total or 0)
    if more not in (0, split.most):
        raise ProtocolError(
            "Messages of large comparisons do not grow as the cost model says.",
            received=f"{more} more in {split.most} pieces of {2 * _CHUNK:,} elements",
            fix="Another version of the engine needs another cost model: report it with the engine's version.",
        )
    return _CHUNK if more else None


def _refills(bench: Bench, settings: Settings, compare: OperationCost) -> Reserve | None:
    """The reserve that comparisons draw from, by how often and how much one makes the engine send more.

    Selections and truncations draw from it too, a few percent of it, which are left out. So is how many of its messages
    wait for one another: the most are sent at once.
    """
    runs = _samples(bench, settings, "compare", _PIECE, _PATIENCE)
    more = [i for i, run in enumerate(runs) if run.messages > (compare.messages or 0)]
    if len(more) < 2:
        return None
    usual = min(run.bytes for run in runs)
    every = (more[-1] - more[0]) // (len(more) - 1)
    return Reserve(
        elements=every * _PIECE, bytes=statistics.mean(runs[i].bytes - usual for i in more),
        messages=runs[more[0]].messages_total - (compare.messages_total or 0), left=every * _PIECE,
    )  # fmt: skip


def _product(bench: Bench, settings: Settings, source: str) -> OperationCost:
    """Products draw triples, of which a batch is made when they run out; large calls are computed directly."""
    size = _DEGREE // 4
    runs = _samples(bench, settings, "product", size, 8)
    usual, most = min(runs, key=lambda run: run.bytes), max(runs, key=lambda run: run.bytes)
    made = [run for run in runs if run.bytes > usual.bytes]
    if not 2 * len(made) == len(runs):
        raise ProtocolError(
            "Products do not draw from a reserve as the cost model says.",
            received=", ".join(f"{run.bytes:,} bytes" for run in runs),
            fix="Another version of the engine needs another cost model: report it with the engine's version.",
        )
    direct = _samples(bench, settings, "product", _DIRECT, 2)[-1]
    batch = max(statistics.median(run.seconds for run in made) - usual.seconds, 0.0)
    reserve = Reserve(
        elements=2 * size, bytes=statistics.mean(run.bytes for run in made) - usual.bytes,
        messages=most.messages_total - usual.messages_total, serial=_SERIAL, left=2 * size - 1,
        direct_from=_DIRECT, direct_elements=_DEGREE, direct_bytes=direct.bytes / 2,
        direct_messages=direct.messages_total // 2,
    )  # fmt: skip
    return OperationCost(
        bytes=usual.bytes / size, messages=usual.messages, messages_total=usual.messages_total, reserve=reserve,
        status="measured", source=f"{source}; {size:,} and {_DIRECT:,} elements",
        seconds=Compute(
            element=rounded(usual.seconds / size), batch=rounded(batch), status="measured", source=on_machine()
        ),
    )  # fmt: skip


def _samples(bench: Bench, settings: Settings, operation: str, size: int, times: int) -> list[Sample]:
    [workload] = [one for one in elementwise(settings) if operation in one.kernels]
    runs = bench.run(workload.function, random_values(workload.shapes(size)), times=times)
    return [sample(run, workload.kernels[operation]) for run in runs]


def _matmul(bench: Bench, source: str, repeats: int) -> OperationCost:
    """Sizes of ciphertexts, from products whose numbers of them the packing tells."""
    samples = [take(bench, product_of(sizes), ("mmul_aa",), 0, min(repeats, 2)) for sizes in _MATRICES]
    counts = [ciphertexts(*sizes, _DEGREE) for sizes in _MATRICES]
    rows = [
        (sent.requests, sent.responses * sent.packs, sent.responses * (not sent.packs), m * n * (not sent.packs))
        for sent, (m, _, n) in zip(counts, _MATRICES, strict=True)
    ]
    request, packed, single, coefficient = solve(rows, [one.bytes / 2 for one in samples])
    _check_messages(samples, [sent.requests + sent.responses for sent in counts])
    packing = Packing(
        degree=_DEGREE, request=round(request), packed=round(packed), single=round(single),
        coefficient=round(coefficient, 2),
    )  # fmt: skip
    effort = [
        (1.0, sent.blocks, sent.responses * sent.depth * sent.packs, math.prod(sizes))
        for sent, sizes in zip(counts, _MATRICES, strict=True)
    ]
    call, block, rotation, multiply = solve_seconds(effort, [one.seconds for one in samples])
    return OperationCost(
        messages=None, packing=packing, status="measured",
        source=f"{source}; {len(_MATRICES)} shapes from {_MATRICES[0]} to {_MATRICES[-1]}, packed as in its source",
        seconds=Compute(
            call=call, ciphertext=block, rotation=rotation, multiply=multiply, status="measured", source=on_machine(),
        ),
    )  # fmt: skip


def _check_messages(samples: Sequence[Sample], expected: Sequence[int]) -> None:
    found = [one.messages for one in samples]
    if found != list(expected):
        raise ProtocolError(
            "Products of matrices are not packed as the cost model says.",
            received=f"{found} messages in place of {list(expected)}",
            fix="Another version of the engine needs another cost model: report it with the engine's version.",
        )
