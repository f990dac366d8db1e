"""Ways of running a dense block in less memory, with the same result (chapter 10)."""

from densenet_from_scratch.efficient.checkpointed import (
    BLOCK_TYPES,
    COUNTED,
    ActivateAndPool,
    CheckpointedBlock,
    RecomputingSharedBlock,
    SelectiveBlock,
    SharedBlock,
    SharedNormalisation,
    block_and_pool,
    block_and_transition,
    checkpointed_stem,
    why_not_whole,
)

__all__ = [
    "BLOCK_TYPES",
    "COUNTED",
    "ActivateAndPool",
    "CheckpointedBlock",
    "RecomputingSharedBlock",
    "SelectiveBlock",
    "SharedBlock",
    "SharedNormalisation",
    "block_and_pool",
    "block_and_transition",
    "checkpointed_stem",
    "why_not_whole",
]
