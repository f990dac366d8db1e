"""What PyTorch gives no public way to ask, in one place (chapter 10).

A way of running a network that goes round its modules must know whether anybody would notice: a
hook, a tracer, a transform. Some of that is public, some is found out by trying, and for the rest
this file, and no other, reads names that PyTorch keeps to itself. A name that a later PyTorch no
longer has is taken as "somebody may be watching": then the modules run.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.utils import _python_dispatch as dispatch

METHODS = ("__call__", "forward", "_conv_forward", "through_conv1", "after_conv1", "after_pooling")
"""What the parts of a dense network compute with, where they have it."""
FUNCTIONS = {
    (where, name): getattr(where, name)
    for where, names in ((F, "relu conv2d batch_norm dropout avg_pool2d"), (torch, "cat conv2d"))
    for name in names.split()
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_tensors_and_parts(module: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Return a module's own parameters, buffers and parts by name; what is None counts as absent.

    PyTorch's public ways give the same, in ten times the time.
    """
    own = vars(module)
    try:
        groups = own["_parameters"], own["_buffers"], own["_modules"]
    except KeyError:
        named = (module.named_parameters, module.named_buffers)
        return *(dict(find(recurse=False)) for find in named), dict(module.named_children())
    return tuple({name: one for name, one in group.items() if one is not None} for group in groups)


def hooks_of(part: nn.Module | Tensor) -> list[Any]:
    """Return the hooks that wait on a module or a tensor."""
    return [hook for name in HOOKS for hook in (getattr(part, name, None) or {}).values()]


def times_written(tensor: Tensor) -> int:
    """Return how often something was written to a tensor, also where it was put back."""
    return 0 if tensor.is_inference() else tensor._version


def saved_tensors_hooks_now() -> Any:
    """Return the innermost hooks that what is stored for backward passes goes through, or None."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top(True) if top else None


def drop_saved_tensors_hooks() -> None:
    """Leave the innermost ``torch.autograd.graph.saved_tensors_hooks``, which somebody entered."""
    torch._C._autograd._pop_saved_tensors_default_hooks()


def is_watched(module: nn.Module) -> bool:
    """Return whether a hook waits on a module, or its call has been compiled."""
    own = vars(module)
    return any(own.get(name, True) for name in HOOKS) or bool(own.get("_compiled_call_impl"))


def all_are_watched() -> bool:
    """Return whether a hook waits on all modules there are."""
    ask = getattr(global_hooks, "_has_any_global_hook", None)
    return ask is None or bool(ask())


def is_in_mode() -> bool:
    """Return whether a mode sees, and may change, each operation: a counter, a tracer, a fake.

    The one of ``torch.set_default_device`` only places new tensors, and does not count.
    """
    operations = getattr(dispatch, "_get_current_dispatch_mode", None)
    functions = getattr(torch.overrides, "_get_current_function_mode_stack", None)
    if operations is None or functions is None or operations() is not None:
        return True
    return any(type(mode).__name__ != "DeviceContext" for mode in functions())


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has memory of its own: one inside ``torch.func.vmap`` has none."""
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


class _Probe(torch.autograd.Function):
    """A function without ``setup_context``, which transforms of torch.func refuse."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


_NOTHING = torch.empty(0, device="cpu")


def is_transformed() -> bool:
    """Return whether a transform of torch.func, or forward-mode differentiation, is under way."""
    try:
        _Probe.apply(_NOTHING)
        with forward_ad.dual_level():  # refuses to be nested
            return False
    except RuntimeError:
        return True


def watcher() -> str | None:
    """Name what would notice, anywhere in a network, that its modules do not run; or None."""
    if torch.jit.is_tracing():
        return "torch.jit is tracing"
    if torch.compiler.is_compiling():
        return "a compiler or an export is recording"
    if is_transformed():
        return "a transform of torch.func or forward-mode differentiation is under way"
    for (where, name), original in FUNCTIONS.items():
        if getattr(where, name) is not original:
            return f"{name} of PyTorch has been replaced"
    if all_are_watched():
        return "a hook waits on all modules"
    if is_in_mode():
        return "a mode sees every operation"
    return None
