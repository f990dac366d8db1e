"""Counting what a network has, does and stores (chapters 1 to 11).

All of it is counted, not estimated: parameters from the tensors, multiply-accumulates from the
operations that run, bytes and connections from the graph that autograd records.
"""

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import log
from pathlib import Path
from statistics import linear_regression
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
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


def _is_view(module: nn.Module) -> bool:
    """Say whether a module shows the parameters of others as its own, as ``features`` does."""
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
            child, or its members where it is a list of modules, but no view of other parts.

    Raises:
        ValueError: a name is not a module of the network, or a size is not a positive integer.
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
def saved_tensors(
    *excluded: nn.Module, note: Callable[[Tensor], Any] | None = None
) -> Iterator[list[Tensor]]:
    """Collect what autograd saves for the backward pass of everything computed inside.

    A tensor that several operations save is stored once and collected once, and so are tensors
    that share memory.

    Args:
        excluded: modules whose parameters and buffers, which exist anyway, are left out.
        note: called with each tensor when it is collected.
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
            if note is not None:
                note(tensor)
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


@dataclass(frozen=True)
class Stored:
    """Bytes that one module's part of the forward pass stores for the backward pass.

    Attributes:
        layer: the module's name in the network; empty for what the network itself computes.
        kind: its class, such as ``BatchNorm2d``.
        bytes: each tensor counted once, at the first module that stored it.
    """

    layer: str
    kind: str
    bytes: int


def stored_by_layer(module: nn.Module, *inputs: Tensor) -> list[Stored]:
    """Tell where :func:`saved_bytes` come from: the innermost module that was running.

    What a module computes with functions, such as a ReLU or a concatenation, counts as its own.

    Args:
        module: what to run, in the mode it is in, on a copy.
        inputs: its arguments.

    Returns:
        The modules that store something, in the order in which they first do.

    Raises:
        ValueError: the module stores something else while its parts are watched, as networks do
            whose efficient ways go round their modules.
    """
    expected = saved_bytes(module, *inputs)
    module = copy.deepcopy(module)
    running: list[tuple[str, str]] = [("", type(module).__name__)]
    stored: dict[tuple[str, str], int] = {}
    for name, part in module.named_modules():
        if name:
            who = (name, type(part).__name__)
            part.register_forward_pre_hook(lambda *_, who=who: running.append(who))
            part.register_forward_hook(lambda *_: running.pop() and None, always_call=True)

    def note(tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        stored[running[-1]] = stored.get(running[-1], 0) + size

    with saved_tensors(module, note=note):
        output = module(*inputs)
    del output  # held until here, so that the graph was whole
    if (found := sum(stored.values())) != expected:
        raise ValueError(
            "module must store the same while its parts are watched (efficient=False), but stores "
            f"{found:,} bytes then, got one that stores {expected:,}"
        )
    return [Stored(layer, kind, size) for (layer, kind), size in stored.items()]


def peak_bytes(run: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Return by how much memory grew at its highest while ``run`` ran, in bytes.

    On a GPU from the allocator's own statistics; on a CPU by adding up every allocation and
    deallocation in the trace that ``torch.profiler`` exports, which leaves out the scratch memory
    that libraries such as oneDNN take for themselves.

    Args:
        run: such as a training step.
        device: where it computes.

    Raises:
        RuntimeError: the trace tells nothing of memory.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes of its progress
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.empty(1)  # so that there is something to find
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    memory.sort(key=lambda event: event["ts"])
    changes = [event["args"]["Bytes"] for event in memory]
    if changes[:2] != [4, -4]:
        raise RuntimeError("the profiler's trace must tell of memory, got none in this PyTorch")
    return max(accumulate(changes[2:], initial=0))


def growth_exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """Fit amount = c · size^p by least squares on logarithmic scales; return p.

    Args:
        sizes: such as numbers of layers, at least two different ones, positive.
        amounts: such as bytes stored, positive.

    Raises:
        ValueError: there are too few sizes, one is not positive, or the lengths differ.
    """
    if len(sizes) != len(amounts) or len(set(sizes)) < 2 or min([*sizes, *amounts]) <= 0:
        raise ValueError(
            "sizes and amounts must be equally many positive numbers, two different sizes or "
            f"more, got {list(sizes)} and {list(amounts)}"
        )
    return linear_regression([log(s) for s in sizes], [log(a) for a in amounts]).slope


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


def strength_by_source(
    weight: Tensor, widths: Sequence[int], gamma: Tensor | None = None
) -> Tensor:
    """Return the mean absolute weight that a layer gives to the maps of each source.

    Huang et al. (2017), section 5, "Feature Reuse": a stand-in for how much the layer depends on
    that source.

    Args:
        weight: of a convolution (out, in, height, width) or linear layer (out, in) whose inputs are
            maps of several sources, side by side.
        widths: how many maps each source has, in their order.
        gamma: the factors γ (in,) of a BatchNorm before the layer, by which each map's weights are
            multiplied: the BatchNorm and the layer together scale a map by both.

    Returns:
        The means, shape (sources,).

    Raises:
        ValueError: the widths do not add up to the layer's inputs.
    """
    if sum(widths) != weight.shape[1]:
        raise ValueError(
            f"widths must add up to the layer's {weight.shape[1]} inputs, got {list(widths)}"
        )
    by_map = weight.detach().abs().transpose(0, 1).flatten(1).mean(dim=1)  # (in,)
    if gamma is not None:
        by_map = by_map * gamma.detach().abs()
    return torch.stack([maps.mean() for maps in by_map.split(list(widths))])


def connection_strengths(network: nn.Module, gamma: bool = False) -> list[Tensor]:
    """Return how strongly each layer of a DenseNet weighs each source, a matrix for each block.

    Huang et al. (2017), figure 5. A block of L layers has L + 1 sources, its input x_0 and its
    layers, and L + 1 readers, its layers and what follows the block: a transition, or the
    classifier.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet`.
        gamma: multiply each weight by the |γ| of the BatchNorm before it.

    Returns:
        A matrix (L + 1, L + 1) for each block. Row s and column t hold
        :func:`strength_by_source` of source x_s for reader t + 1; NaN where t + 1 reads no x_s.
    """
    parts: Any = network
    exits = [(transition.norm, transition.conv) for transition in parts.transitions]
    exits.append((parts.norm, parts.classifier))
    matrices = []
    for block, exit_ in zip(parts.blocks, exits, strict=True):
        readers = [(layer.norm1, layer.conv1) for layer in block.layers] + [exit_]
        inputs = [reader.weight.shape[1] for _, reader in readers]
        widths = [inputs[0], *(after - before for before, after in pairwise(inputs))]
        matrix = torch.full((len(readers), len(readers)), torch.nan)
        for column, (norm, reader) in enumerate(readers):
            matrix[: column + 1, column] = strength_by_source(
                reader.weight, widths[: column + 1], norm.weight if gamma else None
            )
        matrices.append(matrix)
    return matrices


def seconds_side_by_side(
    runs: Mapping[str, Callable[[], Any]], rounds: int = 10
) -> dict[str, list[float]]:
    """Time functions against each other: in every round each of them runs once, in turn.

    So whatever slows the machine down for a while slows all of them. Work on a GPU is waited for.
    One more round comes first and is not counted.

    Args:
        runs: what to time, by name.
        rounds: how often.

    Returns:
        The seconds of every round, by name.

    Raises:
        ValueError: ``rounds`` is not a positive integer.
    """
    check_count("rounds", rounds)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            started = perf_counter()
            run()
            wait()
            if round_ > 0:
                seconds[name].append(perf_counter() - started)
    return seconds
