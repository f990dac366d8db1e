"""What goes through a network: outputs of its parts, and gradients (chapters 1 and 2)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of every convolution's and linear layer's weight gradient.

    Args:
        module: a network after ``loss.backward()``.

    Returns:
        Norms by the layer's name, in the order in which the network was built.

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


def record_outputs(
    modules: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[Any, dict[str, Tensor]]:
    """Call ``run`` and keep the output of each of ``modules``.

    Returns:
        What ``run`` returned, and the outputs by name: the last one of a module that ran several
        times, and none of a module that did not run.
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
