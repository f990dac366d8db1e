"""Whether a part of a network is still exactly what its class built (chapter 10).

The ways of running a network that go round its modules, such as shared normalisation, know what
the modules would have done only as long as nobody has changed them: replaced or pruned a part, set
a ``forward`` of its own, hung a hook on it. So there is one rule. A way goes round the modules only
if every part is exactly as built; otherwise the modules run. The functions here decide, and say
why.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densenet_from_scratch.dense import BottleneckLayer, DenseLayer
from densenet_from_scratch.internals import (
    METHODS,
    has_memory,
    is_watched,
    own_tensors_and_parts,
    watcher,
)
from densenet_from_scratch.stem import ImageNetStem, SmallStem
from densenet_from_scratch.transition import Transition


class Built(NamedTuple):
    """What a class builds."""

    kind: type[nn.Module]
    parameters: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = {}
    """Attributes and their values."""
    parts: Mapping[str, "Built"] = {}

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return what its class computes with."""
        methods = {name: getattr(self.kind, name, None) for name in METHODS}
        return {name: method for name, method in methods.items() if method is not None}


NORM = Built(
    nn.BatchNorm2d,
    frozenset(("weight", "bias")),
    frozenset(("running_mean", "running_var", "num_batches_tracked")),
    {"affine": True, "track_running_stats": True},
)
RELU = Built(nn.ReLU)


def convolution(size: int, stride: int = 1) -> Built:
    """Return what a convolution without bias is built of, padded so that the maps keep their size.

    With a stride of 2 they have half of it.
    """
    settings = {
        "kernel_size": (size, size),
        "stride": (stride, stride),
        "padding": (size // 2, size // 2),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    return Built(nn.Conv2d, frozenset(["weight"]), settings=settings)


POOL = Built(
    nn.MaxPool2d,
    settings={
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
    },
)
BOTTLENECK = {
    "norm1": NORM,
    "conv1": convolution(1),
    "norm2": NORM,
    "conv2": convolution(3),
}
IMAGENET = {"conv": convolution(7, stride=2), "norm": NORM, "relu": RELU, "pool": POOL}
BUILT = {
    built.kind: built
    for built in (
        NORM,
        Built(DenseLayer, parts={"norm1": NORM, "conv1": convolution(3)}),
        Built(BottleneckLayer, parts=BOTTLENECK),
        Built(Transition, parts={"norm": NORM, "conv": convolution(1)}),
        Built(SmallStem, parts={"conv": convolution(3)}),
        Built(ImageNetStem, parts=IMAGENET),
    )
}
ORIGINAL = {
    built.kind: built.methods() for top in BUILT.values() for built in (top, *top.parts.values())
}


def why_not_as_built(part: nn.Module, name: str = "it") -> str | None:
    """Return in one line what of a layer, transition, stem or BatchNorm is not as built, or None.

    Args:
        part: what to look at, with all that is in it.
        name: what to call it.
    """
    built = BUILT.get(type(part))
    if built is None:
        return f"{name} is a {type(part).__name__}"
    return _difference(part, built, name)


def _difference(part: nn.Module, built: Built, name: str) -> str | None:
    if type(part) is not built.kind:
        return f"{name} is a {type(part).__name__}, not a {built.kind.__name__}"
    for method, original in ORIGINAL[built.kind].items():
        if method in vars(part) or getattr(built.kind, method) is not original:
            return f"{name} has a {method} of its own"
    if is_watched(part):
        return f"{name} has a hook, or was compiled"
    parameters, buffers, parts = own_tensors_and_parts(part)
    for what, expected, present in (
        ("parts", built.parts.keys(), parts),
        ("parameters", built.parameters, parameters),
        ("buffers", built.buffers, buffers),
    ):
        if present.keys() != expected:
            return f"{name} has {what} {sorted(present)}, not {sorted(expected)}"
    for key, tensor in (*parameters.items(), *buffers.items()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            return f"{name}.{key} is a {type(tensor).__name__}, {tensor.layout}"
    for setting, value in built.settings.items():
        if getattr(part, setting) != value:
            return f"{name} has {setting} {getattr(part, setting)!r}, not {value!r}"
    for key, child in parts.items():
        if reason := _difference(child, built.parts[key], f"{name}.{key}"):
            return reason
    return None


def why_not_alike(
    layers: Iterable[nn.Module], width: int | None, prefix: str = "layers"
) -> str | None:
    """Return why layers are not those of one dense block as built, or None.

    Args:
        layers: the block's.
        width: maps that enter the block, k_0, or None where they are what the first layer reads.
        prefix: what to call them.
    """
    layer: Any
    first: tuple[type, int, int] | None = None
    for number, layer in enumerate(layers):
        name = f"{prefix}.{number}"
        if reason := why_not_as_built(layer, name):
            return reason
        makes, reads = layer.conv1.weight.shape[:2]
        width = reads if width is None else width
        widths = [len(t) for t in (layer.norm1.weight, layer.norm1.bias, layer.norm1.running_mean)]
        if {reads, *widths} != {width}:
            return f"{name} does not read {width} maps"
        middle = makes
        if isinstance(layer, BottleneckLayer):
            makes, reads = layer.conv2.weight.shape[:2]
            widths = [len(t) for t in (layer.norm2.weight, layer.norm2.bias)]
            if {reads, *widths} != {middle}:
                return f"{name} has parts of several widths"
        if first is None:
            first = (type(layer), middle, makes)
        elif first != (type(layer), middle, makes):
            return f"{name} is unlike the first layer"
        width += makes
    return None if first else f"{prefix} is empty"


def why_not_round(x: Tensor) -> str | None:
    """Return why modules cannot be gone round for an input here and now, or None.

    Args:
        x: what enters them, (N, C, H, W).
    """
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        return f"x is a {type(x).__name__}"
    if x.dim() != 4 or x.layout is not torch.strided:
        return f"x is {x.layout} of shape {tuple(x.shape)}"
    if x.device.type not in ("cpu", "cuda") or not has_memory(x):
        return f"x is on {x.device}, or one of a batch under a transform"
    return watcher()


def why_not_in_types(x: Tensor, tensors: Iterable[Tensor]) -> str | None:
    """Return why shared normalisation does not know the types at hand, or None.

    Args:
        x: the input.
        tensors: parameters and buffers, all of real numbers.
    """
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) != 1:
        return "parameters or statistics are of several types or on several devices"
    [(dtype, device)] = kinds
    if device != x.device:
        return f"x is on {x.device}, the parameters on {device}"
    if torch.is_autocast_enabled(device.type):
        if dtype is not torch.float32 or x.dtype is torch.float64:
            return f"autocast leaves {dtype} and {x.dtype} alone"
    elif dtype not in (torch.float32, torch.float64) or x.dtype is not dtype:
        return f"x is {x.dtype} and the parameters are {dtype}"
    return None
