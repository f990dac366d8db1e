"""The checks of the exercises are fair: hard to fool, and they disturb nothing.

That each wrong answer gets its own message is tested in test_mistakes.py and test_exercises.py.
"""

import inspect
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densenet_from_scratch.course import checks
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.model import DenseNet

CHECKS = {name: value for name, value in vars(checks).items() if hasattr(value, "__wrapped__")}


class AlwaysEqual:
    """What a hostile submission returns instead of an answer."""

    shape, dtype, requires_grad = (1,), torch.float64, True

    def __eq__(self, other):
        return True

    def __getattr__(self, name):
        return lambda *_, **__: AlwaysEqual()

    def __bool__(self):
        return True


class AgreeableTensor(torch.Tensor):
    """A tensor that answers every question with yes."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.allclose, torch.equal):
            return True
        return super().__torch_function__(function, types, args, kwargs or {})


class AgreeableInt(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class PlainLayer(nn.Module):
    """A right answer."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv(F.relu(self.norm(x)))


def test_equality_is_judged_by_type_and_values():
    expected = torch.tensor([1.0, 2.0])
    assert checks.same_values(torch.tensor([1.0, 2.0]), expected)
    assert checks.same_values(nn.Parameter(torch.tensor([1.0, 2.0])), expected)
    agreeable = torch.zeros(2).as_subclass(AgreeableTensor)
    assert torch.allclose(agreeable, expected)  # so a naive test would accept it
    for wrong in (
        torch.tensor([1.0, 2.1]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([[1.0, 2.0]]),
        expected.numpy(),
        [1.0, 2.0],
        None,
        agreeable,
        AlwaysEqual(),
    ):
        assert checks.same_values(wrong, expected) is False


def test_numbers_are_judged_by_type_and_value():
    assert checks.same_number(1, 1)
    assert AgreeableInt(3) == 1
    for wrong in (2, 1.0, True, "1", None, torch.tensor(1.0), AgreeableInt(3), AlwaysEqual()):
        assert checks.same_number(wrong, 1) is False
    for right in (torch.tensor(1), np.int64(1), np.array(1), AgreeableInt(1)):
        assert checks.same_number(right, 1) is True


def test_lists_and_numbers_of_other_libraries_are_read_as_pythons():
    class Pair(NamedTuple):
        first: int
        second: float

    for right in ((1, 2.5), [1, 2.5], Pair(1, 2.5), (np.int32(1), torch.tensor(2.5))):
        assert checks.same_result(right, (1, 2.5)) is True
    assert checks.same_result(torch.tensor([1, 2]), [1, 2]) is True
    for wrong in ((1,), (1, 2.5, 3), [(1, 2.5)], Pair(1, 2.6), {1: 2.5}, (True, 2.5), "12"):
        assert checks.same_result(wrong, (1, 2.5)) is False


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_refuses_what_the_package_holds(check):
    messages = []
    for thing in (DenseNet, count_parameters):
        with pytest.raises(AssertionError) as caught:
            check(thing)
        messages.append(str(caught.value))
    assert any("of the package densenet_from_scratch" in message for message in messages)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("kind", ["object", "function", "module"])
def test_every_check_refuses_answers_that_only_claim_to_be_right(check, kind):
    class Module(nn.Module):
        layers = AlwaysEqual()
        norm = norm1 = conv = conv1 = AlwaysEqual()

        def __init__(self, *arguments):
            super().__init__()

        def forward(self, x):
            return AlwaysEqual()

    answer = {"object": AlwaysEqual(), "function": lambda *_: AlwaysEqual(), "module": Module}[kind]
    with pytest.raises(AssertionError):
        check(answer)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_says_what_it_checks(check):
    assert inspect.getdoc(check)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_stub_stays_a_stub(check):
    class Stub(nn.Module):
        def __init__(self, *arguments):
            super().__init__()
            raise NotImplementedError

    def stub(*arguments):
        raise NotImplementedError

    errors = []
    for answer in (Stub, stub):
        with pytest.raises((NotImplementedError, AssertionError)) as caught:
            check(answer)
        errors.append(caught.type)
    assert NotImplementedError in errors


def test_a_right_answer_prints_one_short_line(capsys):
    checks.plain_layer_values(PlainLayer)
    printed = capsys.readouterr()
    assert printed.out.startswith("✓ PlainLayer") and printed.out.count("\n") == 1
    assert len(printed.out) < 100 and printed.err == ""


def test_a_check_leaves_random_numbers_and_the_answer_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checks.plain_layer_values(PlainLayer)
    checks.plain_layer_gradient(PlainLayer)
    assert torch.equal(torch.rand(3), expected)


def test_settings_of_the_notebook_do_not_decide():
    with torch.no_grad():
        checks.plain_layer_gradient(PlainLayer)
    torch.set_default_dtype(torch.float64)
    try:
        checks.plain_layer_shape(PlainLayer)
        checks.plain_layer_values(PlainLayer)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_warning_in_an_answer_costs_no_marks(capsys):
    """nbgrader gives no points to a test cell that writes to stderr."""

    class Warns(PlainLayer):
        def forward(self, x):
            warnings.warn("look out", stacklevel=1)
            return super().forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.plain_layer_values(Warns)
    assert capsys.readouterr().err == ""


def test_an_error_in_an_answer_is_reported_with_its_cause():
    class Fails(PlainLayer):
        def forward(self, x):
            return {}["no such key"]

    with pytest.raises(AssertionError, match="stopped with KeyError") as caught:
        checks.plain_layer_values(Fails)
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_message_comes_without_the_frames_of_the_checks():
    """IPython leaves out frames marked __tracebackhide__, all but the last."""

    class Wrong(PlainLayer):
        def forward(self, x):
            return self.conv(self.norm(x))

    with pytest.raises(AssertionError, match="there is no ReLU") as caught:
        checks.plain_layer_values(Wrong)
    assert [frame.name for frame in caught.traceback][1:] == ["check"]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
