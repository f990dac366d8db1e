"""What an answer does on a wide battery of arguments, told without the course's checks.

``behaviour`` calls what a solution cell defines and writes down all that can be observed: results,
gradients, arguments and running statistics afterwards, modes, PyTorch's global state. ``same``
compares two of these records. A mutant that behaves as the solution is no wrong answer.
"""

import math
import numbers
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop

from densenet_from_scratch import dense, plain
from densenet_from_scratch.osa import ConvLayer

# --- Records of behaviour ------------------------------------------------------------------------


def record(value, depth: int = 0):
    """Turn a value into one that keeps what it was, and can be compared."""
    if isinstance(value, Tensor):
        grad = None if not value.is_leaf or value.grad is None else value.grad.detach().clone()
        return ("tensor", value.dtype, value.requires_grad, value.detach().clone(), grad)
    if value is None or isinstance(value, str):
        return ("is", value)
    if isinstance(value, numbers.Number | np.generic):
        integer = isinstance(value, numbers.Integral | np.integer)
        return ("number", integer, isinstance(value, int | float), value)
    if isinstance(value, dict):
        return ("dict", {key: record(each, depth + 1) for key, each in value.items()})
    if isinstance(value, nn.Module):
        parts = sorted(
            (name, part.training)
            for name, part in value.named_modules()
            if not name or part._parameters or part._buffers
        )
        held = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        hooks = sum(len(part._forward_hooks) for part in value.modules())
        return ("module", parts, hooks, record(held), sorted(value.state_dict()))
    if isinstance(value, list | tuple | nn.ModuleList) and depth < 6:
        return ("list", [record(each, depth + 1) for each in value])
    return ("other", type(value).__name__)


def same(a, b, integers: bool = False) -> bool:
    """Say whether two records agree; with ``integers`` a number must be of the same kind."""
    if a[0] != b[0]:
        if {a[0], b[0]} == {"tensor", "number"} and not integers:
            return _number_in_tensor(a, b)
        return False
    if a[0] == "tensor":
        if a[1:3] != b[1:3] or a[3].shape != b[3].shape or (a[4] is None) != (b[4] is None):
            return False
        return _close(a[3], b[3]) and (a[4] is None or _close(a[4], b[4]))
    if a[0] == "number":
        return (not integers or a[1:3] == b[1:3]) and _equal(a[3], b[3])
    if a[0] == "dict":
        return a[1].keys() == b[1].keys() and all(same(a[1][k], b[1][k], integers) for k in a[1])
    if a[0] == "module":
        return a[1:3] == b[1:3] and a[4] == b[4] and same(a[3], b[3])
    if a[0] == "list":
        pairs = zip(a[1], b[1], strict=False)
        return len(a[1]) == len(b[1]) and all(same(c, d, integers) for c, d in pairs)
    return a == b


def _number_in_tensor(a, b) -> bool:
    tensor, number = (a, b) if a[0] == "tensor" else (b, a)
    return not tensor[2] and tensor[3].dim() == 0 and _equal(tensor[3].item(), number[3], 1e-5)


def _equal(a, b, tolerance: float = 1e-6) -> bool:
    if isinstance(a, numbers.Integral) or isinstance(b, numbers.Integral):
        return bool(a == b)
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9) or (a != a and b != b)
    except (TypeError, OverflowError):
        return False


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    if a.shape != b.shape or a.is_meta or b.is_meta:
        return a.shape == b.shape
    size = a.nan_to_num().abs().max().item() if a.numel() else 0.0
    tolerance = (1e-9 if a.dtype == torch.float64 else 3e-4) * max(size, 1e-3)
    return bool(torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def global_state() -> tuple:
    """PyTorch's global state, as far as an answer could change it."""
    return (
        "is",
        (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        ),
    )


def reset() -> None:
    """Undo what an answer did to PyTorch's global state."""
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that really run, forth and back."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def attempt(steps: Callable[[], list]) -> tuple:
    """Return what the steps record, or that they raise."""
    try:
        return ("list", [*steps(), global_state()])
    except Exception as error:
        return ("raises", type(error).__name__)
    finally:
        reset()


def tensors_in(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def backward(result) -> None:
    """Send a gradient back that is another one for each number."""
    outputs = [t for t in tensors_in(result) if t.requires_grad and t.is_floating_point()]
    total = sum(
        (t * torch.linspace(0.5, 2, t.numel(), dtype=t.dtype).view(t.shape)).sum()
        for t in outputs
        if t.grad_fn is not None
    )
    if isinstance(total, Tensor):
        total.backward()


# --- Kinds of answers ----------------------------------------------------------------------------


@dataclass
class Function:
    """A function; ``draw`` makes its arguments, anew for each call, from a random generator."""

    name: str
    draw: Callable[[random.Random], tuple]
    count: int = 12
    integers: bool = False
    also: tuple[tuple, ...] = ()
    modes: bool = True  # whether modes have to stay

    def observe(self, names: dict) -> list:
        records = []
        function = names[self.name]
        for fixed in self.also:
            records.append(attempt(lambda fixed=fixed: [record(function(*fixed))]))
        for seed in range(self.count):

            def steps(seed=seed):
                torch.manual_seed(seed)
                arguments = self.draw(random.Random(seed))
                result = function(*arguments)
                seen = [record(result)]
                backward(result)
                if not self.modes:
                    for argument in arguments:
                        if isinstance(argument, nn.Module):
                            argument.eval()
                seen += [
                    record(argument)
                    for argument in arguments
                    if not callable(argument) or isinstance(argument, nn.Module)
                ]
                if seed == 1:
                    torch.manual_seed(seed)
                    seen.append(record(function(*self.draw(random.Random(seed)))))
                with torch.no_grad():
                    if seed == 2:
                        seen.append(record(function(*self.draw(random.Random(seed)))))
                return seen

            records.append(attempt(steps))
        return records


@dataclass
class Network:
    """A module; ``draw`` makes its arguments and the shape of an input (or a list of shapes)."""

    name: str
    draw: Callable[[random.Random], tuple]
    count: int = 10
    attributes: tuple[str, ...] = ()
    stored: bool = False
    integers: bool = True

    def observe(self, names: dict) -> list:
        return [
            attempt(lambda seed=seed: self.steps(names[self.name], seed))
            for seed in range(self.count)
        ]

    def steps(self, make, seed: int) -> list:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        arguments, shape = self.draw(draw)
        kept = [list(each) if isinstance(each, list) else each for each in arguments]
        module = make(*arguments)
        seen = [("is", [each == old for each, old in zip(arguments, kept, strict=True)])]
        seen.append(record([getattr(module, name) for name in self.attributes]))
        torch.manual_seed(seed)
        other = make(*self.draw(random.Random(seed))[0])
        shared = {p.data_ptr() for p in module.parameters()}
        seen.append(("is", any(p.data_ptr() in shared for p in other.parameters())))
        dtype = torch.float64 if seed % 2 == 0 else torch.float32
        fill(module, seed)
        module.to(dtype).train(seed % 3 != 0)
        shapes = shape if isinstance(shape, list) else [shape]
        xs = [(torch.randn(one, dtype=dtype) + 0.1) for one in shapes]
        if seed % 4 == 1:  # not contiguous
            xs = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in xs]
        if seed % 4 != 2:
            xs = [x.requires_grad_() for x in xs]
        x = xs if isinstance(shape, list) else xs[0]
        stored: dict = {}

        def keep(tensor):
            stored[tensor.data_ptr(), tuple(tensor.shape)] = tensor
            return tensor

        hooks = saved_tensors_hooks(keep, lambda t: t) if self.stored else nullcontext()
        with Convolutions() as convolutions, torch.set_grad_enabled(seed % 5 != 4):
            with hooks:
                y = module(x)
            seen.append(record(y))
            backward(y)
        if self.stored:
            seen.append(record([sum(t.numel() for t in stored.values()), convolutions.count]))
        seen += [record(x), record(module), ("is", len(xs))]
        module.eval()
        with torch.no_grad():
            seen += [record(module(x)), record(module(x))]
        return [*seen, record(module), record(arguments)]


def fill(module: nn.Module, seed: int) -> None:
    """Draw all weights and statistics, by name, so that equal networks get equal ones."""
    torch.manual_seed(seed)
    for name, value in sorted(module.state_dict().items()):
        if value.is_floating_point():
            if value.dim() > 1:
                value.normal_(std=0.5)
            elif name.endswith("bias") or name.endswith("mean"):
                value.normal_()
            else:
                value.uniform_(0.5, 2)


@dataclass
class Special:
    """An answer with a way of its own to be looked at."""

    look: Callable[[dict, int], list]
    count: int = 6
    integers: bool = False

    def observe(self, names: dict) -> list:
        return [attempt(lambda seed=seed: self.look(names, seed)) for seed in range(self.count)]


# --- What the questions ask for ------------------------------------------------------------------


def size(r) -> tuple[int, int]:
    return r.randint(2, 7), r.randint(2, 7)


def maps(r, channels: int, double: bool = True, grad: bool = True, batch: int | None = None):
    shape = (batch or r.choice([1, 2, 3, 5]), channels, *size(r))
    x = torch.randn(shape, dtype=torch.float64 if double else torch.float32)
    return x.requires_grad_(grad)


def ints(*ranges: tuple[int, int]) -> Callable:
    return lambda r: tuple(
        r.randint(low, r.choice([high, min(high, low + 4)])) for low, high in ranges
    )


def image(r, channels: int) -> tuple:
    return (r.choice([1, 2, 3, 5]), channels, *size(r))


def layer_shape(*ranges):
    """Arguments of a layer whose first one is the channels of its input."""

    def draw(r):
        arguments = ints(*ranges)(r)
        return arguments, image(r, arguments[0])

    return draw


def block_shape(first=(0, 5)):
    def draw(r):
        layers, channels, k = r.randint(*first), r.randint(1, 5), r.randint(1, 4)
        return (layers, channels, k), image(r, channels)

    return draw


def stack_shape(r):
    layers, channels = r.randint(0, 5), r.randint(1, 5)
    return (layers, channels), image(r, channels)


def kernels(r):
    count = r.choice([0, 1, 2, 3, 6, 14])
    return [r.choice([1, 2, 3, 5, 7]) for _ in range(count)], [
        r.choice([1, 1, 2, 3]) for _ in range(count)
    ]


def branch_arguments(r):
    c, dtype = r.randint(1, 4), r.choice([torch.float32, torch.float64])
    layers = [
        r.choice(
            [
                plain.PlainLayer(c),
                nn.Conv2d(c, c, 3, padding=1),
                nn.Tanh(),
                plain.PlainLayer(c).eval(),
            ]
        ).to(dtype)
        for _ in range(r.randint(0, 5))
    ]
    return layers, maps(r, c, dtype == torch.float64, r.random() < 0.7)


def shortcut_arguments(r):
    c = r.randint(1, 6)
    x = torch.randn(
        r.randint(1, 4),
        c,
        r.randint(1, 11),
        r.randint(1, 11),
        dtype=r.choice([torch.float32, torch.float64]),
    )
    return x.requires_grad_(r.random() < 0.7), c + r.choice([0, 1, 5, c]), r.choice([1, 2, 3, 4])


def state_arguments(r):
    k_0, k, count = r.randint(1, 6), r.randint(1, 4), r.randint(0, 5)
    dtype = r.choice([torch.float32, torch.float64])
    x = torch.randn(image(r, k_0), dtype=dtype)
    layers = [
        dense.DenseLayer(k_0 + k * i, k).to(dtype).train(r.random() < 0.5) for i in range(count)
    ]
    for layer in layers:
        for p in layer.parameters():
            p.requires_grad_(False)
    return layers, x


def evaluate_arguments(r):
    classes = r.randint(2, 5)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(27, classes)
    )
    network.train(r.random() < 0.6)
    batches = [
        (torch.randn(n, 2, 5, 5), torch.randint(0, classes, (n,)))
        for n in r.choices([1, 2, 4, 7], k=r.randint(1, 4))
    ]
    return network, batches


def errors(r):
    n = r.choice([2, 3, 5, 8])
    first = [r.uniform(1, 20) for _ in range(n)]
    gap, noise = r.choice([-3, -1, 0, 1, 3]), r.choice([0.1, 1, 4])
    return first, [a + gap + r.gauss(0, noise) for a in first], r.choice([2.78, 4.3, 12.7, 2.0])


def train_arguments(r):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3))
    network.train(r.random() < 0.5)
    batches = [
        (torch.randn(n, 1, 5, 5), torch.randint(0, 3, (n,)))
        for n in r.choices([2, 3, 4], k=r.randint(1, 4))
    ]
    return network, batches, r.choice([1, 2, 3, 4, 7, 8]), r.choice([0.1, 0.01, 0.4])


def weight_of(r, widths, square=None):
    shape = (r.randint(1, 4), sum(widths), *r.choice([(), (1, 1), (3, 3), (1, 5)]))
    weight = torch.randn(shape, dtype=r.choice([torch.float32, torch.float64]))
    return nn.Parameter(weight) if r.random() < 0.5 else weight


def some_widths(r):
    return [r.randint(1, 5) for _ in range(r.randint(1, 5))]


def reversed_arguments(r):
    widths = some_widths(r)
    return weight_of(r, widths).detach(), widths


def strength_arguments(r):
    widths = some_widths(r)
    weight = weight_of(r, widths)
    gamma = torch.randn(sum(widths), dtype=weight.dtype).requires_grad_(r.random() < 0.5)
    widths = r.choice([list, tuple])(widths)
    return r.choice([(weight, widths), (weight, widths, gamma)])


def contribution_arguments(r):
    widths = some_widths(r)
    dtype = r.choice([torch.float32, torch.float64])
    conv = nn.Conv2d(
        sum(widths), r.randint(1, 4), r.choice([1, 3]), padding=r.choice([0, 1]), bias=False
    ).to(dtype)
    return conv, torch.randn(r.randint(1, 3), sum(widths), 5, 4, dtype=dtype).relu(), widths


def matrix_weights(r):
    widths = some_widths(r)
    totals = [sum(widths[: i + 1]) for i in range(len(widths))]
    return (
        [
            nn.Parameter(torch.randn(r.randint(1, 4), total, *r.choice([(), (1, 1), (3, 3)])))
            for total in totals
        ],
    )


def percent_matrix(r):
    n = r.randint(1, 5)
    matrix = torch.rand(n, n, dtype=r.choice([torch.float32, torch.float64])) + 0.01
    matrix[torch.ones(n, n).tril(-1).bool()] = torch.nan
    return (matrix * 10 ** r.randint(-3, 3),)


def rises(names: dict, seed: int) -> list:
    r = random.Random(seed)
    torch.manual_seed(seed)
    widths = some_widths(r)
    weight = weight_of(r, widths)
    other = torch.randn_like(weight)
    calls = []

    def loss():
        calls.append(torch.is_grad_enabled())
        return (weight * other).sum().item() + (weight**2).sum().item()

    result = names["mended_rises"](weight, tuple(widths), loss)
    return [record(result), record(weight), record(widths), ("is", any(calls))]


def counted_arguments(r):
    c, k = r.randint(1, 5), r.randint(1, 4)
    module = r.choice(
        [
            dense.DenseBlock(r.randint(1, 4), c, k),
            dense.DenseBlock(2, c, k, bottleneck=False),
            nn.Sequential(nn.Conv2d(c, k, 3), nn.ReLU(), nn.Flatten(), nn.Linear(k * 4, 3)),
            nn.Sequential(nn.BatchNorm2d(c), nn.Sigmoid(), nn.Conv2d(c, k, 1)),
            nn.BatchNorm2d(c),
        ]
    )
    return module, torch.randn(r.choice([1, 2, 3]), c, 4, 4)


def reads(names: dict, seed: int) -> list:
    r = random.Random(seed)
    torch.manual_seed(seed)
    momentum = r.choice([0.1, 0.5, None])
    norm = nn.BatchNorm2d(5, momentum=momentum, track_running_stats=seed != 5).double()
    conv = nn.Conv2d(5, 3, r.choice([1, 3])).double()
    norm.train(seed != 3)
    features = [torch.randn(4, c, 5, 5, dtype=torch.float64).requires_grad_() for c in (2, 3)]
    before = [id(buffer) for buffer in norm.buffers()]
    stored: dict = {}

    def keep(tensor):
        stored[tensor.data_ptr()] = tensor
        return tensor

    seen = []
    for _ in range(2):
        with set_checkpoint_early_stop(seed % 2 == 0):
            with saved_tensors_hooks(keep, lambda t: t):
                y = names["mended_read"](norm, conv, *features)
            backward(y)
        seen += [record(y), record(norm), record(conv), record(features)]
        seen.append(("is", [id(buffer) for buffer in norm.buffers()] == before))
    seen.append(record(sum(t.numel() for t in stored.values())))
    freeze = names["mended_freeze"]
    try:
        with freeze(norm):
            norm.train()(features[0].detach().repeat(1, 3, 1, 1)[:, :5])
            seen.append(record(norm))
            raise KeyError
    except KeyError:
        seen.append(record(norm))
    with freeze(norm):
        norm(features[0].detach().repeat(1, 3, 1, 1)[:, :5])
    return [*seen, record(norm), ("is", sorted(vars(norm)))]


def gradient_arguments(beta: bool):
    def draw(r):
        shape, dtype = image(r, r.randint(1, 4)), r.choice([torch.float32, torch.float64])
        x_hat = torch.randn(shape, dtype=dtype)
        channel = [torch.randn(shape[1], dtype=dtype) for _ in range(2)]
        inverse = torch.rand(shape[1], dtype=dtype) + 0.1
        return torch.randn(shape, dtype=dtype), x_hat, inverse, *channel[: 1 + beta]

    return draw


def one_shot(r):
    widths = [r.randint(1, 4) for _ in range(r.randint(2, 5))]
    layers = [ConvLayer(a, b, r.choice([1, 3])) for a, b in pairwise(widths)]
    identity = r.random() < 0.5
    out = widths[0] if identity else r.randint(1, 5)
    arguments = (layers, out, identity) if identity or r.random() < 0.5 else (layers, out)
    return arguments, image(r, widths[0])


def folds(names: dict, seed: int) -> list:
    r = random.Random(seed)
    torch.manual_seed(seed)
    groups = r.choice([1, 1, 2])
    conv = nn.Conv2d(
        4,
        r.choice([2, 6]),
        r.choice([1, 3]),
        stride=r.choice([1, 2]),
        padding=1,
        bias=r.random() < 0.6,
        groups=groups,
    )
    norm = nn.BatchNorm2d(conv.out_channels, eps=r.choice([1e-5, 0.1]))
    fill(conv, seed), fill(norm, seed)
    norm.running_var[0] = 1e-6
    dtype = r.choice([torch.float32, torch.float64])
    conv.to(dtype), norm.to(dtype).train(r.random() < 0.3)
    folded = names["mended_fold"](conv, norm)
    torch.manual_seed(seed)
    x = torch.randn(2, 4, 6, 5, dtype=dtype)
    seen = [record(folded(x).detach()), record(conv), record(norm), record(folded)]
    seen.append(
        (
            "is",
            (
                type(folded).__name__,
                [type(p).__name__ for p in folded.parameters()],
                any(p is q for p in folded.parameters() for q in conv.parameters()),
            ),
        )
    )
    with torch.no_grad():
        folded.weight.add_(1)
    return [*seen, record(conv), record(norm)]


def body(r):
    config = [r.randint(1, 3) for _ in range(r.randint(1, 4))]
    c = r.randint(2, 6)
    shape = (r.choice([2, 3]), c, r.choice([16, 19]), 16)
    return (config, c, r.randint(1, 4), r.choice([0.25, 0.5, 0.7, 1, 1.0])), shape


def network(r):
    config = r.choice([list, tuple])([r.randint(1, 3) for _ in range(r.randint(1, 4))])
    c = r.choice([1, 3])
    arguments = (
        r.randint(1, 4),
        config,
        r.choice([0.25, 0.5, 0.7, 1.0]),
        r.randint(3, 8),
        c,
        r.randint(2, 5),
    )
    return arguments, (r.choice([1, 2, 3]), c, 16, 17)


def configurations(r):
    return [r.randint(1, r.choice([3, 24])) for _ in range(r.randint(1, 5))]


THETAS = [0.25, 0.5, 0.75, 1.0, 1, 0.3, 0.7]
KEYS = [
    "features.conv0.weight",
    "features.norm0.running_mean",
    "features.norm5.bias",
    "classifier.weight",
    "classifier.bias",
    *(
        f"features.denseblock{b}.denselayer{n}.{part}"
        for b in (1, 2, 4, 9, 10, 23)
        for n in (1, 2, 9, 10, 16, 100)
        for part in ("norm1.weight", "conv2.weight", "norm2.bias")
    ),
    *(
        f"features.transition{n}.{part}"
        for n in (1, 3, 9, 10, 12)
        for part in ("norm.weight", "conv.weight")
    ),
]

BATTERY: dict[tuple[str, str], list] = {
    ("01-plain", "plain-layer"): [Network("PlainLayer", layer_shape((1, 8)))],
    ("01-plain", "plain-parameters"): [
        Function("plain_parameters", ints((1, 60), (1, 64), (1, 5), (1, 1000)), 40)],
    ("01-plain", "receptive-field"): [Function("receptive_field", kernels, 40)],
    ("01-plain", "mended-stack"): [Network("MendedStack", stack_shape)],
    ("02-residual", "residual-layer"): [Network("ResidualLayer", layer_shape((1, 8)))],
    ("02-residual", "branches"): [Function("branches", branch_arguments)],
    ("02-residual", "shortcut"): [Function("shortcut", shortcut_arguments, 30)],
    ("02-residual", "mended-stack"): [Network("MendedStack", stack_shape)],
    ("03-dense", "dense-layer"): [Network("DenseLayer", layer_shape((1, 8), (1, 5)))],
    ("03-dense", "dense-block"): [Network("DenseBlock", block_shape((1, 5)))],
    ("03-dense", "arithmetic"): [
        Function("input_channels", ints((1, 60), (1, 64), (1, 48)), 40, True),
        Function("connections", ints((1, 300)), 40, True),
        Function("block_parameters", ints((1, 60), (1, 64), (1, 48)), 40, True)],
    ("03-dense", "mended-block"): [Network("MendedBlock", block_shape((1, 5)))],
    ("04-growth-rate", "run-in-state"): [Function("run_in_state", state_arguments)],
    ("04-growth-rate", "books"): [
        Function("maps_of", ints((0, 60), (1, 64), (1, 48)), 60),
        Function("maker_of", ints((0, 400), (1, 64), (1, 48)), 80)],
    ("04-growth-rate", "budget"): [
        Function("largest_growth_rate", ints((1, 900_000), (1, 64), (1, 20)), 60,
                 also=((0, 1, 1), (11, 1, 1), (10, 1, 1), (38 * 52 + 38, 10, 1))),
        Function("largest_depth", ints((1, 900_000), (1, 64), (1, 20)), 60,
                 also=((0, 1, 1), (11, 1, 1), (10, 1, 1), (33, 1, 1), (32, 1, 1)))],
    ("04-growth-rate", "mended-block"): [Network("MendedBlock", block_shape((1, 5)))],
    ("05-bottleneck", "bottleneck-layer"): [
        Network("BottleneckLayer", layer_shape((1, 8), (1, 5), (1, 4)))],
    ("05-bottleneck", "when-it-pays"): [
        Function("bottleneck_parameters", ints((1, 900), (1, 64), (1, 12)), 40, True),
        Function("first_cheaper", lambda r: (r.choice([1, 2, 3, 5, 7, 11]), r.randint(1, 64),
                                             r.randint(1, 60)), 120, True)],
    ("05-bottleneck", "merged"): [
        Function("merged_kernel", lambda r: (lambda m, w, k, d: (
            torch.randn(w, m, 1, 1, dtype=d),
            torch.randn(k, w, 3, 3, dtype=d)))(
                r.randint(1, 6), r.randint(1, 6), r.randint(1, 6),
                r.choice([torch.float32, torch.float64]))),
        Function("mixtures", ints((1, 300), (1, 30), (1, 14)), 80)],
    ("05-bottleneck", "mended-layer"): [
        Network("MendedLayer", layer_shape((1, 8), (1, 5), (1, 4)))],
    ("06-transition", "transition"): [
        Network("Transition", lambda r: (lambda m: ((m, r.choice(THETAS)), image(r, m)))(
            r.randint(4, 12)), attributes=("out_channels",))],
    ("06-transition", "books"): [
        Function("block_widths", lambda r: (configurations(r), r.randint(1, 64), r.randint(1, 48),
                                            r.choice(THETAS)), 60),
        Function("transition_macs", lambda r: (r.randint(1, 512), r.choice(THETAS), *(
            r.randint(2, 57), r.randint(2, 57)), r.random() < 0.5), 60)],
    ("06-transition", "pooled-kernel"): [
        Function("pooled_kernel", lambda r: (torch.randn(
            r.randint(1, 6), r.randint(1, 6), 1, 1,
            dtype=r.choice([torch.float32, torch.float64])),))],
    ("06-transition", "mended-body"): [Network("MendedBody", body, 8, ("out_channels",))],
    ("07-densenet", "small-densenet"): [Network("SmallDenseNet", network, 8)],
    ("07-densenet", "depths"): [
        Function("depth", lambda r: (configurations(r), r.random() < 0.5), 40),
        Function("layers_per_block", lambda r: (r.randint(1, r.choice([20, 200])),
                                                r.random() < 0.5), 150)],
    ("07-densenet", "densenet-parameters"): [
        Function("densenet_parameters", lambda r: (
            r.randint(1, 32), configurations(r), r.choice(THETAS), r.randint(2, 64),
            r.choice([1, 3, 4]), r.randint(1, 100)), 40)],
    ("07-densenet", "mended-name"): [
        Function("mended_name", lambda r: (r.choice(KEYS),), 0, also=tuple((k,) for k in KEYS))],
    ("08-training", "schedule"): [
        Function("learning_rate", lambda r: (lambda e: (r.randint(0, e - 1), e, r.choice(
            [0.1, 0.4, 1.0, 0.05])))(r.randint(1, r.choice([9, 300]))), 200),
        Function("steps", ints((1, 60_000), (1, 300), (1, 300)), 60)],
    ("08-training", "evaluate"): [Function("evaluate", evaluate_arguments, 12, True, modes=False)],
    ("08-training", "interval"): [
        Function("paired_interval", errors, 30),
        Function("verdict", errors, 60, also=(
            ([1.0, 3.0], [0.0, 0.0], 2.0), ([1.0, 1.0], [1.0, 1.0], 2.0)))],
    ("08-training", "mended-train"): [Function("mended_train", train_arguments, 8)],
    ("09-feature-reuse", "sources"): [
        Function("source_widths", lambda r: ((lambda w: [sum(w[: i + 1]) for i in range(len(w))])(
            some_widths(r)),), 20),
        Function("oldest_first", reversed_arguments, 20)],
    ("09-feature-reuse", "strength-and-contribution"): [
        Function("strength", strength_arguments, 20),
        Function("contributions", contribution_arguments, 12)],
    ("09-feature-reuse", "heatmap"): [
        Function("block_matrix", matrix_weights), Function("percent", percent_matrix, 20)],
    ("09-feature-reuse", "mended-rises"): [Special(rises, 10)],
    ("10-memory", "counts"): [
        Function("stored_maps", ints((1, 60), (1, 64), (1, 48), (0, 8)), 40),
        Function("counted_maps", counted_arguments, 14)],
    ("10-memory", "checkpointed-layer"): [
        Network("CheckpointedLayer", lambda r: (lambda w: (
            (sum(w), r.randint(1, 4)), [(3, c, 5, 4) for c in w]))(some_widths(r)), 8,
            stored=True)],
    ("10-memory", "mended-read"): [Special(reads, 6)],
    ("10-memory", "gradients"): [
        Function("normalisation_gradients", gradient_arguments(False), 12),
        Function("activated_gradients", gradient_arguments(True), 12)],
    ("11-cost", "moved"): [
        Function("numbers_moved", lambda r: (
            r.randint(1, 64), r.randint(1, 64), r.choice([1, 3, 5, 7]), r.randint(1, 60),
            r.randint(1, 60), r.choice([1, 2, 3, 4]), r.randint(1, 64)), 60),
        Function("least_moved", lambda r: (r.randint(1, 10**9), r.choice([1, 3, 5, 7]),
                                           r.randint(1, 5000)), 40)],
    ("11-cost", "readers"): [
        Function("dense_counts", ints((1, 64), (1, 48), (1, 40)), 40, True),
        Function("osa_counts", ints((1, 64), (1, 48), (1, 512), (1, 20)), 40, True)],
    ("11-cost", "one-shot"): [Network("OneShot", one_shot)],
    ("11-cost", "mended-fold"): [Special(folds, 14)],
}  # fmt: skip


def behaviour(assignment: str, cell: str, names: dict) -> list:
    """Return the records of all that a cell defines."""
    return [(answer.integers, answer.observe(names)) for answer in BATTERY[assignment, cell]]


def behaves_alike(one: list, other: list) -> bool:
    return all(
        len(a) == len(b) and all(same(c, d, integers) for c, d in zip(a, b, strict=True))
        for (integers, a), (_, b) in zip(one, other, strict=True)
    )


def raises_everywhere(found: list) -> bool:
    """Say whether one of the answers raises on whatever it is given."""
    return any(all(each[0] == "raises" for each in records) for _, records in found)
