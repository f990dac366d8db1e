"""Counting what a network has, does and stores (chapters 1 to 11).

All of it is counted, not estimated: parameters from the tensors, multiply-accumulates from the
operations that run, bytes and connections from the graph that autograd records.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from densenet_from_scratch.arguments import check_count


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
        ValueError: a size in ``input_shape`` is not a positive integer.
    """
    ghost, image = _ghost(module, input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(image)
    return counter.get_total_flops() // 2


def _ghost(module: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """Return a copy of ``module`` in evaluation mode and an input for it, both without data."""
    for axis, size in enumerate(input_shape):
        check_count(f"input_shape[{axis}]", size)
    ghost = copy.deepcopy(module).to("meta", torch.float32).eval()
    return ghost, torch.empty(tuple(input_shape), device="meta")


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
            child, or its members where it is a list of modules.

    Raises:
        ValueError: a name is not a module of the network, or a size is not a positive integer.
    """
    ghost, image = _ghost(network, input_shape)
    modules = dict(ghost.named_modules())
    if names is None:
        names = [
            name
            for child, module in ghost.named_children()
            for name in (
                [f"{child}.{index}" for index in range(len(module))]
                if isinstance(module, nn.ModuleList)
                else [child]
            )
        ]
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


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of every convolution's and linear layer's weight gradient.

    Args:
        module: a network after ``loss.backward()``.

    Returns:
        Norms by the layer's name, from the input to the output.

    Raises:
        ValueError: a layer has no gradient yet.
    """
    norms = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if layer.weight.grad is None:
                raise ValueError(f"module must have gradients: call backward() first ({name})")
            norms[name] = layer.weight.grad.norm().item()
    return norms


@contextmanager
def saved_tensors(*excluded: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what autograd saves for the backward pass of everything computed inside.

    A tensor that several operations save is stored once and collected once, and so are tensors
    that share memory.

    Args:
        excluded: modules whose parameters and buffers, which exist anyway, are left out.
    """
    known = {
        tensor.untyped_storage().data_ptr()
        for module in excluded
        for tensor in (*module.parameters(), *module.buffers())
    }
    collected: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        # A storage we hold cannot be freed, so its address stays its own.
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            known.add(address)
            collected.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield collected


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Return the bytes that a forward pass stores until the backward pass.

    Counts activations, and the input where a layer saves it, but no parameters. The module runs
    in the mode it is in, on a copy, so its running statistics do not move.

    Args:
        module: what to run.
        inputs: its arguments.
    """
    module = copy.deepcopy(module)
    with saved_tensors(module) as tensors:
        output = module(*inputs)
    del output  # held until here, so that the graph was whole
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def connections(maps: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """List which maps were computed directly from which others, by walking autograd's graph.

    From each tensor the walk follows the graph towards the inputs and stops at the first of the
    other tensors on each path.

    Args:
        maps: named tensors of one computation, such as the x_0, ..., x_L of a block. A tensor that
            nothing was computed from needs ``requires_grad``.

    Returns:
        Pairs (source, target), one a connection, by target and then source in the order given.

    Raises:
        ValueError: a tensor is not part of a graph.
    """
    names: dict[Any, str] = {}
    for name, tensor in maps.items():
        if not tensor.requires_grad:
            raise ValueError(f"maps[{name!r}] must be part of an autograd graph, but is not")
        names[torch.autograd.graph.get_gradient_edge(tensor).node] = name
    order = list(maps)
    found = []
    for node, target in names.items():
        sources, seen, to_visit = set(), set(), [parent for parent, _ in node.next_functions]
        while to_visit:
            current = to_visit.pop()
            if current is None or current in seen:
                continue
            seen.add(current)
            if current in names:
                sources.add(names[current])
            else:
                to_visit.extend(parent for parent, _ in current.next_functions)
        found += [(source, target) for source in sorted(sources, key=order.index)]
    return found


def record_outputs(
    modules: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[Any, dict[str, Tensor]]:
    """Call ``run`` and keep the output of each of ``modules``.

    Returns:
        What ``run`` returned, and the outputs by name.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        return run(), outputs
    finally:
        for handle in handles:
            handle.remove()
