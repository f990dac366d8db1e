"""What holds for every answer while it runs: its own work, its arguments and all else unchanged."""

import functools
import gc
import random
import sys
import traceback

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densenet_from_scratch import measure, plain
from densenet_from_scratch.course import checks
from densenet_from_scratch.train import evaluate


def refusal(check, answer) -> str:
    with pytest.raises(AssertionError) as caught:
        check(answer)
    return str(caught.value)


def depth(block_config, bottleneck):
    """A right answer."""
    return 2 + sum(block_config) * (2 if bottleneck else 1) + len(block_config) - 1


def plain_parameters(num_layers, channels, in_channels, num_classes):
    """A right answer."""
    layers = num_layers * (9 * channels**2 + 2 * channels)
    return 9 * in_channels * channels + layers + 2 * channels + (channels + 1) * num_classes


def receptive_field(kernels, strides):
    """A right answer."""
    size = 1
    for kernel, stride in zip(kernels[::-1], strides[::-1], strict=True):
        size = (size - 1) * stride + kernel
    return size


def paired_interval(first, second, factor):
    """A right answer."""
    d = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(d) / len(d)
    spread = (sum((x - mean) ** 2 for x in d) / (len(d) - 1)) ** 0.5
    return mean, factor * spread / len(d) ** 0.5


RIGHT = {
    checks.depth: depth,
    checks.plain_parameters: plain_parameters,
    checks.receptive_field: receptive_field,
    checks.paired_interval: paired_interval,
}


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_a_right_answer_passes_in_any_wrapping(check):
    right = RIGHT[check]

    @functools.wraps(right)
    def wrapped(*arguments):
        return right(*arguments)

    for answer in (right, wrapped, functools.partial(right), lambda *a: right(*a)):
        check(answer)
    if check is checks.plain_parameters:
        check(functools.lru_cache(right))


# --- What it was given ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "edit", "what"),
    [
        (checks.depth, lambda blocks, _: blocks.sort(reverse=True), "list"),
        (checks.depth, lambda blocks, _: blocks.clear(), "list"),
        (checks.receptive_field, lambda kernels, _: kernels.reverse(), "list"),
        (checks.receptive_field, lambda _, strides: strides.reverse(), "list"),
        (checks.paired_interval, lambda a, b, _: (a.sort(), b.sort()), "list"),
    ],
)
def test_a_list_that_was_given_stays_as_it_is(check, edit, what):
    right = RIGHT[check]

    def before(*arguments):
        edit(*arguments)
        return right(*arguments)

    def after(*arguments):
        result = right(*arguments)
        edit(*arguments)
        return result

    for answer in (before, after):
        assert f"changes the {what}" in refusal(check, answer).replace(" arguments", "")
        check(right)  # and what the check holds itself has not been changed either


class Stack(nn.Module):
    """A right answer to the question of chapter 1 whose layers all stand in a list."""

    def __init__(self, num_layers, channels):
        super().__init__()
        self.layers = nn.Sequential(*(plain.PlainLayer(channels) for _ in range(num_layers)))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda stack, x: stack.eval(), "the mode"),
        (lambda stack, x: stack.requires_grad_(False), "requires_grad"),
        (lambda stack, x: stack.layers[0].conv.weight.data.mul_(1.01), "the weights"),
        (lambda stack, x: x.data.add_(1), "the tensor x"),
        (lambda stack, x: torch.set_default_dtype(torch.float64), "default dtype"),
        (lambda stack, x: torch.set_num_threads(3), "number of threads"),
        (lambda stack, x: torch.set_grad_enabled(False), "recording of gradients"),
        (lambda stack, x: torch.manual_seed(0), "seed"),
        (lambda stack, x: random.seed(0), "Python's random numbers"),
        (lambda stack, x: torch.set_default_device("meta"), "default device"),
    ],
)
def test_modules_inputs_and_settings_stay_as_they_are(edit, what):
    class Edits(Stack):
        def forward(self, x):
            y = super().forward(x)
            edit(self, x)
            return y

    settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    state = torch.random.get_rng_state()
    checks.plain_stack_values(Stack)
    assert f"changes {what}" in refusal(checks.plain_stack_values, Edits).replace(
        "a setting of the whole notebook: ", ""
    )
    assert settings == (
        *(torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_device() == torch.device("cpu")


# --- Its own work --------------------------------------------------------------------------------


class Forward(nn.Module):
    """The package's forward with parts of its own."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return plain.PlainLayer.forward(self, x)


class Inside(Forward):
    """The package's layer, made in secret, with its own weights."""

    def forward(self, x):
        layer = plain.PlainLayer(x.shape[1]).to(x.dtype)
        layer.norm, layer.conv = self.norm, self.conv
        return layer(x)


def counted(layers, channels, images, classes):
    return measure.count_parameters(plain.PlainNet(layers, channels, images, classes))


def mapped(*case):
    [count] = map(measure.count_parameters, [nn.Linear(1, 1)])
    return count and plain_parameters(*case)


def from_the_oracle(*case):
    return checks.plain._plain_parameters(*case)


@pytest.mark.parametrize(
    ("check", "answer", "thing"),
    [
        (checks.plain_layer_values, Forward, "PlainLayer.forward"),
        (checks.plain_layer_values, Inside, "PlainLayer"),
        (checks.plain_parameters, counted, "PlainNet"),
        (checks.plain_parameters, mapped, "count_parameters"),
        (checks.plain_parameters, from_the_oracle, "_plain_parameters"),
        (checks.evaluate_values, lambda network, batches: evaluate(network, batches), "evaluate"),
    ],
)
def test_an_answer_that_only_calls_the_package_is_refused(check, answer, thing):
    said = refusal(check, answer)
    assert f"uses {thing} of the package densenet_from_scratch" in said
    assert "writing it yourself" in said


def frames(*case):
    return sys._getframe(1).f_locals and plain_parameters(*case)


def from_a_traceback(*case):
    try:
        raise ValueError
    except ValueError as error:
        frame = error.__traceback__.tb_frame.f_back
    return frame and plain_parameters(*case)


def objects(*case):
    return bool(gc.get_objects()) and plain_parameters(*case)


def without_the_watch(*case):
    sys.setprofile(None)
    return counted(*case)


@pytest.mark.parametrize("answer", [frames, from_a_traceback, objects, without_the_watch])
def test_an_answer_that_looks_at_who_calls_it_is_refused(answer):
    assert "looks into the frames" in refusal(checks.plain_parameters, answer)
    assert sys.getprofile() is None


def test_errors_of_an_answer_may_be_caught_and_printed():
    def careful(*case):
        try:
            return plain_parameters(*case)
        except Exception:
            traceback.print_exc()
            raise

    checks.plain_parameters(careful)


def test_a_function_that_lies_while_the_answer_runs_decides_nothing(monkeypatch):
    class Wrong(Stack):
        def forward(self, x):
            monkeypatch.setattr(torch, "allclose", lambda *_, **__: True)
            return F.relu(x)

    assert "values are wrong" in refusal(checks.plain_stack_values, Wrong)


STRANGE = {"digits": 10**5000, "object": object(), "long": [1] * 10_000, "text": "x" * 10_000}
STRANGE |= {"dict": {}, "empty": (), "nested": [[]], "complex": 1j, "nan": float("nan")}


@pytest.mark.parametrize("value", STRANGE.values(), ids=STRANGE)
def test_whatever_an_answer_gives_it_gets_a_message_that_can_be_read(value):
    for check in RIGHT:
        said = refusal(check, lambda *_: value)
        assert len(said) < 600 and "limit" not in said
