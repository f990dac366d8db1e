"""One-line errors for bad arguments: they name the argument, the value and what is allowed."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from densenet_from_scratch.internals import is_watched


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``; raise ``ValueError`` if not.

    NumPy's integers are integers too.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def check_fraction(name: str, value: Any, *, zero: bool = False, one: bool = True) -> float:
    """Return ``value`` if it is a number between 0 and 1 (ends by choice); else ``ValueError``."""
    interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1 and (zero or value != 0) and (one or value != 1)):
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}")
    return float(value)


def check_number(name: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` if it is a finite number above 0 (or 0, by choice); else ``ValueError``."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and (value > 0 or (zero and value == 0))):
        least = "of at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {least}, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``allowed``; raise ``ValueError`` naming them if not."""
    allowed = tuple(allowed)
    # 1 == True in Python, so an equal value of another type is not good enough.
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_mapping(name: str, value: Any, content: str) -> Mapping[Any, Any]:
    """Return ``value`` if it is a mapping that is not empty; raise ``ValueError`` if not."""
    if not isinstance(value, Mapping) or not value:
        given = "none" if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{name} must hold {content} by name, got {given}")
    return value


def check_images(x: Tensor, channels: int | None, minimum_size: int = 1) -> Tensor:
    """Return ``x`` if it is a batch of images the network can take; raise ``ValueError`` if not.

    What stands for a tensor while operations are recorded (a proxy of ``torch.fx``) has no shape
    to check, and passes.

    Args:
        x: the candidate, which must have shape (N, ``channels``, H, W) with H and W of at least
            ``minimum_size`` pixels.
        channels: channels the network was built for; None takes any number.
        minimum_size: the smallest height and width it can down-sample, in pixels.
    """
    expected = f"(N, {'C' if channels is None else channels}, H, W)"
    if isinstance(x, Proxy):
        return x
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor {expected}, got {type(x).__name__}")
    shape = tuple(x.shape)
    if x.dim() != 4 or channels not in (None, shape[1]):
        raise ValueError(f"x must have shape {expected}, got {shape}")
    if min(shape[2:]) < minimum_size:
        raise ValueError(f"x must be at least {minimum_size} pixels high and wide, got {shape}")
    return x


def channels_read(stem: nn.Module) -> int | None:
    """Return how many channels of an image a network's stem reads, or None where that is unknown.

    It is known of a convolution, and of a chain that begins with one, if nobody changes the image
    on its way there. A stem of your own may be anything.
    """
    first = next(part for part in stem.modules() if not any(part.children()))
    path = [part for part in stem.modules() if part is first or first in part.modules()]
    for part in path:
        kind = nn.Conv2d if part is first else nn.Sequential
        if type(part).forward is not kind.forward or "forward" in vars(part) or is_watched(part):
            return None
    return first.in_channels if isinstance(first, nn.Conv2d) else None


def check_device(device: str | torch.device) -> torch.device:
    """Turn ``"auto"`` or a device name into a device that exists here.

    ``"auto"`` is the GPU when there is one and the CPU otherwise.

    Raises:
        ValueError: ``device`` is not a device name, or asks for one that is not here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}") from None
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device must exist: PyTorch finds {count} CUDA GPUs, got {device!r}")
    if result.type not in ("cpu", "cuda"):
        other = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        if other is None or other.type != result.type:
            raise ValueError(f"device must exist: PyTorch finds no {result.type!r} here")
    return result
