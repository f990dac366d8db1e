"""Ways of running a dense block in less memory, with the same result (chapter 10).

Plain training stores, for every layer, the concatenation of all earlier maps and its normalised
copy: a memory that grows with the square of the depth. In the order of the chapter:

- ``"checkpoint"`` stores neither but computes them again in the backward pass (Pleiss et al. 2017,
  "Memory-Efficient Implementation of DenseNets");
- ``"selective"`` computes everything again but the convolutions (selective activation
  checkpointing);
- ``"shared"`` normalises each map once, not once for every layer that reads it, and so needs
  neither the copies nor the repetition: see :mod:`densenet_from_scratch.efficient.shared`;
- ``"shared-recompute"`` also computes the bottlenecks again; for each number in the block's maps it
  stores one, x̂. ``True`` means this one.

A way goes round the modules only where they are exactly as built: module ``as_built`` decides.
"""

from densenet_from_scratch.efficient.as_built import why_not_alike, why_not_as_built, why_not_round
from densenet_from_scratch.efficient.blocks import (
    BLOCK_TYPES,
    RecomputingSharedBlock,
    SharedBlock,
    why_not_whole,
)
from densenet_from_scratch.efficient.checkpointed import (
    COUNTED,
    CheckpointedBlock,
    SelectiveBlock,
    checkpointed_stem,
)
from densenet_from_scratch.efficient.shared import ActivateAndPool, SharedNormalisation

__all__ = [
    "BLOCK_TYPES",
    "COUNTED",
    "ActivateAndPool",
    "CheckpointedBlock",
    "RecomputingSharedBlock",
    "SelectiveBlock",
    "SharedBlock",
    "SharedNormalisation",
    "checkpointed_stem",
    "why_not_alike",
    "why_not_as_built",
    "why_not_round",
    "why_not_whole",
]
