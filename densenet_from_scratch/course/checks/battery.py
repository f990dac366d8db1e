"""The battery that every answer which computes tensors goes through.

A question's own check comes first, with a message for each likely mistake. What holds for all
modules and all functions of tensors stands here once: gradients, both modes and dtypes, a single
image, odd sizes, and the same result the second time.
"""

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.compare import allclose, same_values
from densenet_from_scratch.course.checks.core import (
    call_answer,
    name_of,
    random_maps,
    require,
    require_tensor,
)

_IN_PLACE = "If it speaks of an in-place operation: look for += and inplace=True in forward."
_ELSEWHERE = torch.bfloat16  # a dtype that no default has


def require_gradients(
    module: nn.Module, x: Tensor, expected: Callable[[Tensor], Tensor], what: str
) -> None:
    """Require the gradients of the input and of every parameter that autograd gets by hand."""
    sources = {"the input": x.requires_grad_()} | dict(module.named_parameters())
    reference = expected(x)
    weights = torch.randn_like(reference)
    before = {parameter: torch.ones_like(parameter) for parameter in module.parameters()}
    for parameter, gradient in before.items():
        parameter.grad = gradient
    right = torch.autograd.grad((reference * weights).sum(), list(sources.values()))
    y = require_tensor(call_answer(what, module, x, hint=_IN_PLACE), what)
    require(
        y.requires_grad,
        f"{what}: no gradient can flow back from the output.\nLook for what cuts the graph: "
        "detach(), .data, torch.no_grad(), numpy, torch.tensor(...).",
    )
    gradients = call_answer(
        f"The backward pass of {what}",
        lambda: torch.autograd.grad((y * weights).sum(), list(sources.values()), allow_unused=True),
        hint=_IN_PLACE,
    )
    for name, gradient, value in zip(sources, gradients, right, strict=True):
        require(
            gradient is not None,
            f"{what}: {name} gets no gradient, so training would never use it.\nLook for what "
            "cuts its path to the output: detach(), .data, torch.no_grad(), or a part unused.",
        )
        require(
            same_values(gradient, value),
            f"{what}: the gradient of {name} is wrong.\nIf the values are right, part of the path "
            "is cut: look for detach(), .data and torch.no_grad().",
        )
    require(
        all(p.grad is kept and bool((kept == 1).all()) for p, kept in before.items()),
        f"The backward pass of {what} changes gradients that were there.\nThey may be those of an "
        "earlier batch, to be added to: look for zero_grad() and .grad.",
    )


def require_everywhere(
    module: nn.Module,
    right: Callable[[Tensor], Tensor],
    channels: int,
    sizes: Sequence[tuple[int, int, int]] = ((1, 5, 7), (5, 4, 6)),
    repeats: bool = False,
) -> None:
    """Require what is right for one image and odd sizes, in both modes and dtypes, again and again.

    Called when a module has given the right values once: the battery that every module goes
    through. ``sizes`` are images, height and width; ``repeats`` allows what checkpointing does.
    """
    name = type(module).__name__
    for training in (True, False):
        mode = f"{name} in {'training' if training else 'evaluation'} mode"
        module.train(training)
        for images, height, width in sizes:
            x = random_maps(images, channels, height, width)
            expected = right(x).detach()
            what = f"{mode}, for maps of shape {tuple(x.shape)},"
            for parameter in module.parameters():  # what an earlier pass has left there
                parameter.grad = torch.ones_like(parameter)
            counts = _batches_counted(module)
            y = require_tensor(call_answer(what, module, x), what)
            passes = {n - counts[part] for part, n in _batches_counted(module).items()} or {
                training
            }
            require(
                passes == {int(training)},
                f"{what} counts the batch {', '.join(map(str, sorted(passes)))} times "
                "(num_batches_tracked of its normalisations).\nLook at how often forward calls "
                "each part: every map is computed once.",
            )
            require(
                same_values(y, expected),
                f"{what} gives something else than what is right, though other maps go well.\nWhat "
                "is special here: the mode, a single image, an odd height or width?",
            )
        two = random_maps(2, channels, *sizes[-1][1:])
        start = _batches_counted(module)
        right(two)  # where it uses parts of the answer, these count, too
        counts = _batches_counted(module)
        require_gradients(module, two, right, mode)
        after = _batches_counted(module)
        most = max((after[p] - counts[p] - (counts[p] - start[p]) for p in start), default=0)
        require(
            repeats or most <= 1,
            f"{mode} counts a batch {most} times, since the backward pass runs its "
            "normalisations again.\nLook for checkpoint(), which repeats what is in it.",
        )
    with torch.no_grad():
        (first, kept), (second, kept_again) = (
            (call_answer(name, module, x), _kept(module)) for _ in range(2)
        )
    require(
        not first.requires_grad,
        f"{name} records a graph under torch.no_grad().\nWho calls it decides about that: look "
        "for enable_grad() and requires_grad_().",
    )
    require_same_again(first, second, name)
    require(
        kept_again <= kept,
        f"{name} holds {kept_again - kept} tensors more after every pass.\nLook for a list that "
        "outlives the pass: maps that nobody reads any more fill the memory.",
    )
    module.float()  # and not a copy: what an answer has tied to itself would stay behind
    y = call_answer(f"{name} in torch.float32", module, x.float())
    module.double()
    require(
        y.dtype == torch.float32 and allclose(y.double(), expected, rtol=1e-2, atol=1e-2),
        f"{name} in torch.float32 gives {y.dtype}, or other values.\nLook for a tensor that "
        "forward makes or casts itself instead of computing it from x.",
    )


def require_same_again(first: Tensor, second: Tensor, name: str) -> None:
    """Require that a second pass, with the same maps and at rest, gives what the first gave."""
    require(
        same_values(second, first),
        f"{name} gives something else the second time.\nLook for a list or a tensor that outlives "
        "the pass: an attribute of self, or a default argument.",
    )


def _kept(module: nn.Module) -> int:
    """Return how many tensors a module and its parts hold in containers of their own."""
    own = vars(nn.Module()).keys()  # what every module has, for parameters and the like
    attributes = [v for part in module.modules() for k, v in vars(part).items() if k not in own]
    return _tensors_in(attributes)


def _tensors_in(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, dict):
        return _tensors_in(list(value.values()))
    if isinstance(value, list | tuple | set | deque):
        return sum(map(_tensors_in, value))
    return 0


def _batches_counted(module: nn.Module) -> dict[str, int]:
    return {
        name: int(part.num_batches_tracked)
        for name, part in module.named_modules()
        if isinstance(part, nn.BatchNorm2d) and part.num_batches_tracked is not None
    }


def require_for_all(
    function: Callable[..., Any],
    right: Callable[..., Tensor | Sequence[Tensor]],
    cases: Sequence[tuple[Any, ...]],
    differentiable: bool = True,
) -> None:
    """Require what is right for every case, in both dtypes, and the gradients of its tensors.

    Called when a function of tensors has given the right values once: the battery that each of
    them goes through. NaN stands for itself.
    """
    name = name_of(function)
    for case in cases:
        shapes = [tuple(part.shape) for part in case if isinstance(part, Tensor)]
        for dtype in (torch.float64, torch.float32):
            what = f"{name} for {dtype} of shape {', '.join(map(str, shapes))}"
            given = [_cast(part, dtype, differentiable) for part in case]
            expected = _as_tensors(right(*given))
            layers = nn.ModuleList(part for part in _flat(given) if isinstance(part, nn.Module))
            before = _batches_counted(layers)
            result = call_answer(what, function, *given)
            runs = [number - before[part] for part, number in _batches_counted(layers).items()]
            require(
                max(runs, default=0) <= 1,
                f"{what} runs a layer {max(runs, default=0)} times.\nLook at what is kept and used "
                "again: every map is computed once.",
            )
            values = [require_tensor(value, what) for value in _as_tensors(result)]
            other = next((v.dtype for v in values if v.dtype != dtype), dtype)
            require(
                other == dtype,
                f"{name} turns {dtype} into {other}.\nLook at which dtype a tensor is made with.",
            )
            require(
                len(values) == len(expected)
                and all(
                    same_values(v, e, dtype is torch.float32)
                    for v, e in zip(values, expected, strict=True)
                ),
                f"{what} gives something else than what is right, though other cases go well."
                "\nWhat is special here: a single image or map, the height and width?",
            )
            sources = [g for g in given if isinstance(g, Tensor) and g.requires_grad]
            if differentiable and sources:
                _require_same_gradients(what, sources, values, expected)


def require_elsewhere(function: Callable[..., Any], shape: tuple[int, ...], *case: Any) -> None:
    """Require a result of the dtype and device of what was given, whatever these are."""
    given = [_elsewhere(part) for part in case]
    what = f"{name_of(function)} for {_ELSEWHERE} on another device"
    hint = "Look at the dtype and the device with which a tensor is made."
    result = require_tensor(call_answer(what, function, *given, hint=hint), what)
    require(
        (result.dtype, result.device.type, tuple(result.shape)) == (_ELSEWHERE, "meta", shape),
        f"{what} gives {result.dtype} on {result.device}.\n{hint}",
    )


def _elsewhere(part: Any) -> Any:
    """Return a tensor as one without numbers, which may not meet one of the CPU."""
    return part.detach().to("meta", _ELSEWHERE) if isinstance(part, Tensor) else part


def _cast(part: Any, dtype: torch.dtype, differentiable: bool) -> Any:
    if isinstance(part, list):
        return [_cast(p, dtype, differentiable) for p in part]
    if isinstance(part, nn.Module):
        part = copy.deepcopy(part).to(dtype)
        for parameter in part.parameters():
            parameter.grad = torch.ones_like(parameter)
        return part
    if not isinstance(part, Tensor):
        return part
    return part.detach().clone().to(dtype).requires_grad_(differentiable)


def _flat(parts: Sequence[Any]) -> list[Any]:
    return [p for part in parts for p in (_flat(part) if isinstance(part, list) else [part])]


def _as_tensors(result: Any) -> list[Any]:
    if isinstance(result, tuple):
        return list(tuple.__iter__(result))
    return list(result) if type(result) is list else [result]


def _require_same_gradients(
    what: str, sources: list[Tensor], values: list[Tensor], expected: list[Tensor]
) -> None:
    weights = [torch.randn_like(value) for value in expected]

    def gradients(outputs: list[Tensor]) -> list[Tensor | None]:
        total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
        assert isinstance(total, Tensor)
        if not total.requires_grad:
            return [None for _ in sources]
        return call_answer(
            f"The backward pass of {what}",
            lambda: torch.autograd.grad(total, sources, allow_unused=True, retain_graph=True),
            hint=_IN_PLACE,
        )

    same = zip(gradients(values), gradients(expected), strict=True)
    require(
        all(a is b or (a is not None and b is not None and same_values(a, b)) for a, b in same),
        f"{what}: what flows back is wrong, or nothing does, though the values are right.\nLook "
        "for what cuts the graph: detach(), .data, torch.no_grad(), numpy, torch.tensor(...).",
    )
