"""Counting what a network has, does and stores (chapters 1 to 11).

All of it is counted, not estimated: parameters from the tensors, multiply-accumulates from the
operations that run, bytes and connections from the graph that autograd records.
"""

from densenet_from_scratch.measure.counts import Row, architecture, count_macs, count_parameters
from densenet_from_scratch.measure.memory import (
    Stored,
    growth_exponent,
    peak_bytes,
    saved_bytes,
    saved_tensors,
    stored_by_layer,
)
from densenet_from_scratch.measure.reuse import (
    connection_strengths,
    connections,
    strength_by_source,
)
from densenet_from_scratch.measure.signals import gradient_norms, record_outputs
from densenet_from_scratch.measure.timing import seconds_side_by_side

__all__ = [
    "Row",
    "Stored",
    "architecture",
    "connection_strengths",
    "connections",
    "count_macs",
    "count_parameters",
    "gradient_norms",
    "growth_exponent",
    "peak_bytes",
    "record_outputs",
    "saved_bytes",
    "saved_tensors",
    "seconds_side_by_side",
    "stored_by_layer",
    "strength_by_source",
]
