"""What the forms of a gate cost in onnxruntime, measured: what lowering chooses by.

Nanoseconds per element of the tensor beyond a ReLU that is part of the convolution before it, the mean of batches 1 and
32: `benchmarks/lowering_costs.py`, 3×3 convolutions with 64 channels on 32×32 images, float32, onnxruntime 1.31.1, one
thread of a shared x86-64 machine, process time, medians of 7. The single figures vary by about 20 % between runs.

======================  =======  ========
form                    batch 1  batch 32
======================  =======  ========
square                  0.13     0.71
slices, 2 runs          1.87     3.33
slices, 8 runs          1.60     3.33
slices, 16 runs         2.46     3.35
slices, 32 runs         3.81     3.25
gather of channels      1.64     4.03
scatter, 1 % kept       1.78     3.78
scatter, 10 % kept      5.29     5.43
scatter, 30 % kept      12.5     9.54
two gathers, any share  39–55    35
======================  =======  ========

The scatters were measured when kept elements were read by ``index_select``; ``gather``, which reads them now, takes
less. So single elements are always written back by a scatter, whatever their share.
"""

from __future__ import annotations

__all__ = ["GATHER", "MOST_RUNS", "cheaper_apart", "slices"]

_SLICES, _PER_RUN = 2.33, 0.0375
#: Gathering whole channels, and putting them back in order.
GATHER = 2.83
# For each kept element of a scatter.
_PER_KEPT = 29.0
#: Runs of equal channels up to which slices and one concatenation are cheaper than a gather and its inverse.
MOST_RUNS = int((GATHER - _SLICES) / _PER_RUN)


def slices(runs: int) -> float:
    """Cutting channels apart in so many stretches, and joining them again."""
    return _SLICES + _PER_RUN * runs


def cheaper_apart(elements: int, in_whole_channels: int, runs: int) -> bool:
    """Whether channels that are kept as a whole are better cut out than scattered with the single kept elements.

    Args:
        elements: Of the tensor, for one sample.
        in_whole_channels: Elements of the channels that are kept as a whole.
        runs: Stretches that cutting them out would make.
    """
    return elements * min(slices(runs), GATHER) < in_whole_channels * _PER_KEPT
