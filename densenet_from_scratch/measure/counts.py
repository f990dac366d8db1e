"""Parameters and multiply-accumulates of a network, as a whole and part by part (chapters 1, 5)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densenet_from_scratch.arguments import check_count
from densenet_from_scratch.measure.signals import record_outputs


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Return the number of parameters; ``trainable_only`` leaves out the frozen ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass in evaluation mode.

    Counted by ``torch.utils.flop_counter``: the convolutions and matrix products, where a
    multiply-accumulate is two FLOPs. BatchNorm, ReLU and pooling are not counted, as is usual.

    Args:
        module: the network. It is left as it is: a copy without data runs instead, on PyTorch's
            "meta" device, so that even a large network is counted in milliseconds.
        input_shape: shape of the input with its batch axis, such as (1, 3, 224, 224).

    Raises:
        ValueError: ``input_shape`` is no list of positive integers.
    """
    ghost, image = _ghost(module, input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(image)
    return counter.get_total_flops() // 2


def _ghost(module: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """Return a copy of ``module`` in evaluation mode and an input for it, both without data."""
    if not isinstance(input_shape, Sequence):
        raise ValueError(
            f"input_shape must list sizes, such as (1, 3, 32, 32), got {input_shape!r}"
        )
    for axis, size in enumerate(input_shape):
        check_count(f"input_shape[{axis}]", size)
    ghost = copy.deepcopy(module).to("meta", torch.float32).eval()
    return ghost, torch.empty(tuple(input_shape), device="meta")


def _is_view(module: nn.Module) -> bool:
    """Return whether a module shows the parameters of others as its own, as ``features`` does."""
    return any(True for _ in module.parameters()) and not any(
        True for _ in module.named_parameters()
    )


@dataclass(frozen=True)
class Row:
    """A line of an architecture table.

    Attributes:
        name: the module's name in the network.
        output_shape: (N, C, H, W), or (N, classes) of a classifier.
        parameters: how many it has.
        macs: multiply-accumulates of its forward pass.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def architecture(
    network: nn.Module, input_shape: Sequence[int], names: Sequence[str] | None = None
) -> list[Row]:
    """Tabulate a network's parts, in the order in which they run.

    Args:
        network: left as it is, see :func:`count_macs`.
        input_shape: shape of the input with its batch axis.
        names: the modules to list, as ``network.named_modules()`` spells them; by default every
            child, or its members where it is a list of modules, but not ``features``, which only
            shows other children's parts again.

    Raises:
        ValueError: ``names`` is no list of modules of the network, or ``input_shape`` none of
            positive integers.
    """
    ghost, image = _ghost(network, input_shape)
    modules = dict(ghost.named_modules())
    if names is None:
        names = [
            name
            for child, module in ghost.named_children()
            if not _is_view(module)
            for name in (
                [f"{child}.{index}" for index in range(len(module))]
                if isinstance(module, nn.ModuleList)
                else [child]
            )
        ]
    if isinstance(names, str):
        raise ValueError(f"names must be a list of names, got {names!r}")
    for name in names:
        if name not in modules:
            raise ValueError(f"names must be modules of the network, got {name!r}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, outputs = record_outputs({n: modules[n] for n in names}, lambda: ghost(image))
    counts = counter.get_flop_counts()
    return [
        Row(
            name,
            tuple(output.shape),
            count_parameters(modules[name]),
            sum(counts.get(f"{type(ghost).__name__}.{name}", {}).values()) // 2,
        )
        for name, output in outputs.items()
    ]
