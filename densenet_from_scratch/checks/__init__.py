"""The checks that the exercises call: each looks at one property and says what went wrong.

A check takes the reader's own class or function. It prints a line that starts with ✓, or raises
``AssertionError`` with a message that names the likely misconception and where to look, and never
the answer. What an answer should do is computed here by hand, with neither the answer's code nor
the package's layers. Checks compare real tensors and real integers only: an object of another
type, which could claim to equal anything, is refused.

A new check is a function that takes the answer, raises through ``common.require`` and returns what
it found to be right; the decorator ``common.as_check`` does the rest.
"""

from densenet_from_scratch.checks.common import same_number, same_values
from densenet_from_scratch.checks.dense import (
    block_parameters,
    connections,
    dense_block_gradient,
    dense_block_layers,
    dense_block_shape,
    dense_block_values,
    dense_layer_gradient,
    dense_layer_parts,
    dense_layer_shape,
    dense_layer_side_effects,
    dense_layer_values,
    input_channels,
)
from densenet_from_scratch.checks.plain import (
    plain_layer_gradient,
    plain_layer_parts,
    plain_layer_shape,
    plain_layer_side_effects,
    plain_layer_values,
    plain_parameters,
    plain_stack_layers,
    plain_stack_values,
    receptive_field,
)
from densenet_from_scratch.checks.residual import (
    branches,
    residual_layer_gradient,
    residual_layer_parts,
    residual_layer_shape,
    residual_layer_side_effects,
    residual_layer_values,
    residual_stack_identity,
    residual_stack_values,
    shortcut_shape,
    shortcut_values,
)

__all__ = [
    "block_parameters",
    "branches",
    "connections",
    "dense_block_gradient",
    "dense_block_layers",
    "dense_block_shape",
    "dense_block_values",
    "dense_layer_gradient",
    "dense_layer_parts",
    "dense_layer_shape",
    "dense_layer_side_effects",
    "dense_layer_values",
    "input_channels",
    "plain_layer_gradient",
    "plain_layer_parts",
    "plain_layer_shape",
    "plain_layer_side_effects",
    "plain_layer_values",
    "plain_parameters",
    "plain_stack_layers",
    "plain_stack_values",
    "receptive_field",
    "residual_layer_gradient",
    "residual_layer_parts",
    "residual_layer_shape",
    "residual_layer_side_effects",
    "residual_layer_values",
    "residual_stack_identity",
    "residual_stack_values",
    "same_number",
    "same_values",
    "shortcut_shape",
    "shortcut_values",
]
