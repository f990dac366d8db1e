"""Bytes that training stores, and how they grow (chapter 10)."""

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import log
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from densenet_from_scratch.arguments import check_device


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
    if (total := sum(stored.values())) != expected:
        raise ValueError(
            "module must be one that runs its own parts (efficient=False), got one that stores "
            f"{expected:,} bytes alone and {total:,} while its parts are watched"
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
        ValueError: ``device`` is no device, or is not here.
        RuntimeError: the trace tells nothing of memory.
    """
    device = check_device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
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
    if changes[:2] != [4, -4]:  # torch.empty(1), which came and went first
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
    try:
        return linear_regression([log(s) for s in sizes], [log(a) for a in amounts]).slope
    except (TypeError, ValueError):
        raise ValueError(
            "sizes and amounts must be equally many positive numbers, two different sizes or "
            f"more, got {sizes!r} and {amounts!r}"
        ) from None
