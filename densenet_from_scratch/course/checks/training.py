"""Checks of the exercises of chapter 8."""

import copy
import math
from collections.abc import Mapping, Sequence
from random import Random
from statistics import mean, pstdev, stdev
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.compare import as_python, same_result, same_values
from densenet_from_scratch.course.checks.conditions import GRADIENTS, TRAINING
from densenet_from_scratch.course.checks.core import (
    as_check,
    call_answer,
    random_maps,
    require,
    require_none,
    require_numbers,
    require_own,
    require_values,
)

Batches = list[tuple[Tensor, Tensor]]


def _rate(epoch: int, epochs: int, peak: float, first: float = 0.5, second: float = 0.75) -> float:
    return peak / 10 ** ((epoch >= first * epochs) + (epoch >= second * epochs))


def _draw_epoch(chance: Random) -> tuple[int, int, float]:
    epochs = chance.randint(1, 60)
    return chance.randrange(epochs), epochs, chance.choice((0.000123, 0.01, 0.1, 0.5, 3.0))


@as_check
def learning_rate(answer: Any) -> str:
    """The step schedule divides by 10 after half and after three quarters of the epochs."""
    right = _rate
    name = require_numbers(
        answer,
        right,
        [(0, 300, 0.1), (149, 300, 0.1), (150, 300, 0.1), (225, 300, 0.1), (299, 300, 0.1)]
        + [(epoch, 7, 0.5) for epoch in range(7)],
        {
            "the rate falls one epoch late.\nEpochs are counted from 0: how many have been "
            "finished when epoch number e "
            "begins?": [
                lambda e, n, p: right(e - 1, n, p),
                lambda e, n, p: p / 10 ** ((e > 0.5 * n) + (e > 0.75 * n)),
            ],
            "the rate falls one epoch early.\nEpochs are counted from 0: how many have been "
            "finished when epoch number e begins?": lambda e, n, p: right(e + 1, n, p),
            "the rate falls only once.\nLook at what "
            "happens after three quarters.": lambda e, n, p: right(e, n, p, second=2),
            "the second fall is too deep.\nThe rate is divided by 10, and "
            "then by 10 again.": lambda e, n, p: p / 10 ** (e >= 0.5 * n) / 100 ** (e >= 0.75 * n),
            "the rate is not divided by 10.\nRead the question.": lambda e, n, p: (
                p / (1 + (e >= 0.5 * n) + (e >= 0.75 * n))
            ),
            "with an odd number of epochs the rate falls too early.\nAfter 3 of 7 epochs, is half "
            "of them over?": lambda e, n, p: p / 10 ** ((e >= n // 2) + (e >= n * 3 // 4)),
            "the rate falls at the epochs of the paper's run, however long this one is.\nLook at "
            "the second argument.": lambda e, n, p: p / 10 ** ((e >= 150) + (e >= 225)),
            "every run starts at 0.1.\nLook at the third argument.": lambda e, n, p: (
                0.1 / 10 ** ((e >= 0.5 * n) + (e >= 0.75 * n))
            ),
            "the rate falls a little in every epoch.\nA step "
            "schedule stays and then jumps.": lambda e, n, p: p * 0.1 ** (e / (n / 2)),
        },
        "Write down the rates of a run of 8 epochs. In which epoch is a half just over, in which "
        "three quarters?",
        "a number",
        draw=_draw_epoch,
    )
    return f"{name} follows the paper's schedule"


@as_check
def steps(answer: Any) -> str:
    """Every epoch has as many steps as batches, the last and smaller one counted."""
    name = require_numbers(
        answer,
        lambda images, batch, epochs: epochs * len(range(0, images, batch)),
        [(1297, 64, 8), (128, 64, 3), (130, 64, 50), (10, 64, 2)],
        {
            "the last batch, which is not full, makes no "
            "step.\nIt is a batch, too.": lambda images, batch, epochs: epochs * (images // batch),
            "batches run across the end of an epoch.\nEach epoch ends with a batch of its own: "
            "where do you round up?": lambda images, batch, epochs: -(-images * epochs // batch),
            "these are the steps of one "
            "epoch.\nHow many are there?": lambda images, batch, epochs: -(-images // batch),
            "there is one batch too many where the images fill their batches.\nIs anything left "
            "over then?": lambda images, batch, epochs: epochs * (images // batch + 1),
            "every image makes a step.\nA step "
            "is taken after each batch.": lambda images, batch, epochs: images * epochs,
        },
        "Go through one epoch of 130 images in batches of 64: how large is each batch?",
        draw=lambda r: (r.randint(1, 90_000), r.randint(1, 3000), r.randint(1, 300)),
    )
    return f"{name} counts every step of a run"


def _network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network


def _batches(*sizes: int) -> Batches:
    return [(3 * random_maps(n, 1, 5, 5), torch.randint(0, 3, (n,))) for n in sizes]


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image, by its definition."""
    right = logits.gather(1, labels[:, None])[:, 0]
    return logits.logsumexp(dim=1) - right


def _see(network: nn.Module, batches: Batches, training: bool) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of every batch, from a copy of the network."""
    network = copy.deepcopy(network).train(training)
    with torch.no_grad():
        return [(network(images), labels) for images, labels in batches]


def _as_numbers(mistakes: Mapping[str, Tensor]) -> dict[str, float]:
    return {message: wrong.item() for message, wrong in mistakes.items()}


@as_check
def evaluate_side_effects(answer: Any) -> str:
    """Evaluation changes nothing in the network and records no graph."""
    name = require_own(answer, FunctionType)
    network, batches = _network().train(), _batches(5, 3, 2)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    originals = {key: value.clone() for key, value in network.state_dict().items()}
    recorded = []
    network.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    what = f"{name}(network, batches)"
    call_answer(what, answer, network, batches, may_change=TRAINING - {GRADIENTS})
    require(len(recorded) > 0, f"{name} never calls the network.\nLook at where logits come from.")
    after = network.state_dict()
    require(
        same_values(after["1.running_mean"], originals["1.running_mean"]),
        f"{name} moves the running statistics of the network's batch normalisation, so it has "
        "learned from the test images.\nIn which mode does the network run? Look at who switches "
        "it.",
    )
    require(
        all(same_values(after[key], value) for key, value in originals.items()),
        f"{name} changes the weights of the network.\nEvaluating is looking: nothing is learned.",
    )
    require(
        not any(recorded),
        f"{name} lets autograd record a graph for each batch, which costs memory and time.\nNobody "
        "will call backward() here: look for the context that says so.",
    )
    return f"{name} only looks: nothing in the network changes"


@as_check
def evaluate_values(answer: Any) -> str:
    """Loss and accuracy are means over all images, in evaluation mode."""
    name = require_own(answer, FunctionType)
    network, batches = _network(), _batches(12, 12, 12, 5)
    with torch.no_grad():
        for images, _ in batches:
            network.train()(images)  # running statistics that differ from those of a batch
    seen = _see(network, batches, training=False)
    losses = [_losses(*pair) for pair in seen]
    hits = [(logits.argmax(1) == labels).double() for logits, labels in seen]
    loss, accuracy = torch.cat(losses).mean().item(), torch.cat(hits).mean().item()
    what = f"{name}(network, batches)"
    result = call_answer(what, answer, network.train(), batches, may_change=TRAINING)
    hint = "Is a `return` missing?" if result is None else "Return two Python numbers: .item()."
    require(
        isinstance(result, tuple | list)
        and len(result) == 2
        and all(type(value) in (int, float) for value in result),
        f"{what} does not give a pair of numbers (loss, accuracy).\n{hint}",
    )
    training = _see(network, batches, training=True)
    wrong_losses = {
        "the loss is that of the network in training mode, where an image's result depends on the "
        "others of its batch.\nLook "
        "at who switches the mode.": torch.cat([_losses(*pair) for pair in training]).mean(),
        "the mean of the batches' means is taken.\nThe last batch is smaller than the others: how "
        "much should it count?": torch.stack([part.mean() for part in losses]).mean(),
        "a softmax comes before the cross-entropy.\nF.cross_entropy does its own: look at what it "
        "wants to be "
        "given.": torch.cat([_losses(logits.softmax(1), labels) for logits, labels in seen]).mean(),
        "the loss is a sum over the images, not a mean.\nWhat do you divide by?": torch.cat(
            losses
        ).sum(),
        "the batches' mean losses are added up.\nWhat do you divide by?": torch.stack(
            [part.mean() for part in losses]
        ).sum(),
        "each batch's loss is a mean already, and is then divided by the number of images.\nLook "
        "at F.cross_entropy's argument reduction, or weigh each batch by "
        "its size.": torch.stack([part.mean() for part in losses]).sum() / len(torch.cat(losses)),
        "only the last batch counts.\nLook at what is added up and what is overwritten.": losses[
            -1
        ].mean(),
    }
    require_none(result[0], loss, _as_numbers(wrong_losses), what, same_result)
    require(
        same_result(result[0], loss),
        f"{what}: the loss is wrong.\nIt is the mean cross-entropy over all images, each counted "
        "once: look at what is added up for each batch, and what divides the sum.",
    )
    wrong_accuracies = {
        "the mean of the batches' accuracies is taken.\nThe last batch is smaller than the "
        "others: how much should it count?": torch.stack([part.mean() for part in hits]).mean(),
        "these are the images that are right.\nWhich *share* is that?": torch.cat(hits).sum(),
        "the accuracy is in per cent.\nThe question asks for 0 to 1.": 100 * torch.cat(hits).mean(),
        "this is the share that is wrong, the error.": 1 - torch.cat(hits).mean(),
        "the accuracy is that of the network in training mode.\nLook at who switches the "
        "mode.": torch.cat([(pair[0].argmax(1) == pair[1]).double() for pair in training]).mean(),
        "the class with the *smallest* logit is taken.\nWhich one "
        "does the network mean?": torch.cat([(a.argmin(1) == b).double() for a, b in seen]).mean(),
        "only the last batch counts.\nLook at what is overwritten.": hits[-1].mean(),
    }
    require_none(result[1], accuracy, _as_numbers(wrong_accuracies), what, same_result)
    require(
        same_result(result[1], accuracy),
        f"{what}: the accuracy is wrong.\nIt is the share of all images whose largest logit is "
        "that of the right class.",
    )
    network, batches = nn.Sequential(*_network(), nn.Dropout(0.9)), _batches(1, 6, 2)
    with torch.no_grad():
        for weight in network[5].parameters():
            weight.mul_(300)
    seen = _see(network, batches, training=False)
    loss = torch.cat([_losses(*pair) for pair in seen]).mean().item()
    accuracy = torch.cat([(a.argmax(1) == b).double() for a, b in seen]).mean().item()
    result = call_answer(what, answer, network.train(), batches, may_change=TRAINING)
    require(
        same_result(result, (loss, accuracy)),
        f"{what} is wrong for a network with dropout, with large logits, or for a batch of one "
        "image.\nWhich modules behave otherwise in evaluation mode? And how large a number can "
        "exp() give?",
    )
    return f"{name} gives mean loss and accuracy over all images"


_SEEDS = [
    ([16.0, 18.0, 15.0, 20.0, 14.0], [12.0, 15.0, 10.0, 16.0, 11.0], 2.776),
    ([3.0, 2.0, 4.0], [3.5, 2.0, 4.5], 4.303),
    ([7.0, 9.0, 8.0, 12.0], [8.0, 9.5, 9.0, 11.0], 3.182),
    ([5.0, 4.0, 6.0, 5.0], [6.0, 5.5, 7.0, 5.5], 3.182),
    (
        [3.0, 4.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0],
        [5.5, 6.5, 7.5, 8.5, 5.5, 6.5, 8.0, 8.5],
        2.365,
    ),
]


def _draw_seeds(chance: Random) -> tuple[list[float], list[float], float]:
    """Errors of two networks, some of them the same in every seed, or better in each by as much."""
    first = [round(chance.uniform(2, 30), 2) for _ in range(chance.randint(2, 15))]
    second = [round(a + chance.choice((-4, 0, 4)) + chance.gauss(0, 2), 2) for a in first]
    if chance.random() < 0.2:
        shift = chance.choice((-2, 0, 2, 0.1))
        first = [float(round(a)) for a in first]
        second = [a + shift for a in first]
    if chance.random() < 0.25:
        return [2.0, 4.0], [2.0, 2.0], 1.0  # the interval ends at 0
    return first, second, round(chance.uniform(1, 5), 3)


def _interval(
    first: Sequence[float], second: Sequence[float], factor: float
) -> tuple[float, float]:
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean(differences), factor * stdev(differences) / math.sqrt(len(differences))


@as_check
def paired_interval(answer: Any) -> str:
    """The interval of the differences by seed: their mean, and t·s/√n."""
    right = _interval

    def apart(a: Sequence[float], b: Sequence[float], t: float) -> tuple[float, float]:
        variance = stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)
        return mean(a) - mean(b), t * math.sqrt(variance)

    def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    name = require_numbers(
        answer,
        right,
        _SEEDS,
        {
            "the two networks' spreads are added up, as if their seeds had nothing in common.\n"
            "For one seed both got the same images: which spread does that remove?": apart,
            "the two networks' spreads are added up.\nTake the differences by seed first, and "
            "then one spread.": lambda a, b, t: (
                mean(a) - mean(b),
                t * (stdev(a) + stdev(b)) / math.sqrt(len(a)),
            ),
            "the variance is divided by n.\nOf n differences from their own mean, how many are "
            "free?": lambda a, b, t: (
                mean(differences(a, b)),
                t * pstdev(differences(a, b)) / math.sqrt(len(a)),
            ),
            "this is the spread of single seeds, not that of their mean.\nHow does a mean of more "
            "seeds become "
            "surer?": lambda a, b, t: (mean(differences(a, b)), t * stdev(differences(a, b))),
            "the standard deviation is divided by n.\nFour times as many seeds: how much narrower "
            "is the "
            "interval?": lambda a, b, t: (
                mean(differences(a, b)),
                t * stdev(differences(a, b)) / len(a),
            ),
            "the factor is left out.\nLook at the third argument.": lambda a, b, t: (
                right(a, b, t)[0],
                right(a, b, 1)[1],
            ),
            "the differences have the wrong sign.\nThe question asks "
            "for first minus second.": lambda a, b, t: (-right(a, b, t)[0], right(a, b, t)[1]),
            "this is the whole width of the interval.\nThe question "
            "asks for half of it.": lambda a, b, t: (right(a, b, t)[0], 2 * right(a, b, t)[1]),
            "these are the ends of the interval.\nThe question asks for its centre and half of "
            "its width.": lambda a, b, t: (
                right(a, b, t)[0] - right(a, b, t)[1],
                right(a, b, t)[0] + right(a, b, t)[1],
            ),
        },
        "Write the differences by seed down first. All the rest is done with these numbers alone.",
        "a pair of numbers (centre, half width)",
        draw=_draw_seeds,
    )
    return f"{name} gives the interval of the paired differences"


def _verdict(first: Sequence[float], second: Sequence[float], factor: float) -> str:
    centre, half = _interval(first, second, factor)
    if centre + half < 0:
        return "first"
    return "second" if centre - half > 0 else "neither"


@as_check
def verdict(answer: Any) -> str:
    """A network wins only if the interval of the difference lies wholly on its side of 0."""
    right = _verdict
    swap = {"first": "second", "second": "first", "neither": "neither"}
    name = require_numbers(
        answer,
        right,
        _SEEDS,
        {
            "the winner is the one that errs *more*.\nThe numbers are errors: what does it mean "
            "if first minus second is above 0?": lambda a, b, t: swap[right(a, b, t)],
            "there is always a winner.\nWhat if the interval holds 0?": lambda a, b, t: (
                "first" if mean(a) < mean(b) else "second"
            ),
            "there is always a winner, and it is the one that errs more.\nWhat if the interval "
            "holds 0?": lambda a, b, t: "second" if mean(a) < mean(b) else "first",
            "the two networks' own intervals are compared.\nThe seeds are paired: which interval "
            "is to be looked at?": lambda a, b, t: (
                "neither"
                if abs(mean(a) - mean(b)) <= t * (stdev(a) + stdev(b)) / math.sqrt(len(a))
                else right(a, b, t)
            ),
            "a network wins only if its worst seed beats the other's best.\nLook at the interval "
            "of the difference by seed.": lambda a, b, t: (
                "first" if max(a) < min(b) else "second" if max(b) < min(a) else "neither"
            ),
        },
        "Look at where the interval of first minus second lies: wholly below 0, wholly above it, "
        "or around it?",
        'one of the words "first", "second" and "neither"',
        draw=_draw_seeds,
    )
    return f"{name} names a winner only where the interval does"


_EPOCHS, _PEAK = 7, 0.1  # half of an odd number, and three quarters of it, are no epochs


def _weights(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def _train(
    network: nn.Module,
    batches: Batches,
    rates: Sequence[Sequence[float]],
    *,
    accumulate: bool = False,
    stale: float = 0.0,
    softmax: bool = False,
    training: bool = True,
) -> Tensor:
    """SGD with Nesterov momentum and weight decay by its definition; return all weights."""
    network = copy.deepcopy(network).train(training)
    parameters = dict(network.named_parameters())
    velocity = {key: torch.zeros_like(value) for key, value in parameters.items()}
    total = {key: torch.ones_like(value) for key, value in parameters.items()}  # before it all
    left = stale  # in every gradient, until the first is cleared
    for epoch in rates:
        for (images, labels), rate in zip(batches, epoch, strict=True):
            logits = network(images)
            loss = _losses(logits.softmax(1) if softmax else logits, labels).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for (key, weight), gradient in zip(parameters.items(), gradients, strict=True):
                    total[key] = total[key] + gradient if accumulate else gradient + left
                    slope = total[key] + 1e-4 * weight
                    velocity[key] = 0.9 * velocity[key] + slope
                    weight.sub_(rate * (slope + 0.9 * velocity[key]))
            left = 0.0
    return _weights(network)


@as_check
def training_rates(answer: Any) -> str:
    """The learning rate falls after half and three quarters of the epochs, not of the batches."""
    name = require_own(answer, FunctionType)
    batches, what = _batches(4, 4, 3), f"{name}(network, batches, {_EPOCHS}, {_PEAK})"
    given = _network(), batches, _EPOCHS, _PEAK
    rates = as_python(call_answer(what, answer, *given, may_change=TRAINING))
    require(
        type(rates) in (list, tuple) and all(type(rate) in (int, float) for rate in rates),
        f"{what} does not give a list of learning rates.\nMend only what is broken: it returns the "
        "rate of every epoch.",
    )
    shown = [round(rate, 6) for rate in rates]
    right = [_rate(epoch, _EPOCHS, _PEAK) for epoch in range(_EPOCHS)]
    by_batch = [_rate(3 * epoch, _EPOCHS, _PEAK) for epoch in range(_EPOCHS)]
    seen = f"the rate is {shown}, epoch by epoch.\n"
    require_none(
        rates,
        right,
        {
            seen + "It falls after so many *batches*: how often in an epoch is the scheduler told "
            "to go on?": [by_batch],
            seen + "It never falls: who tells the scheduler to go on?": [[_PEAK] * _EPOCHS],
            seen + "It falls one epoch early: what comes first in an epoch, training or the "
            "scheduler?": [[_rate(epoch + 1, _EPOCHS, _PEAK) for epoch in range(_EPOCHS)]],
        },
        what,
        same_result,
    )
    hint = "How many epochs does the scheduler believe to be over after each one?"
    require(same_result(rates, right), f"{what}: {seen}{hint}")
    return f"{name} divides the learning rate at the right epochs"


@as_check
def training_weights(answer: Any) -> str:
    """The weights are those of SGD with Nesterov momentum, weight decay and the step schedule."""
    name = require_own(answer, FunctionType)
    network, batches = _network().eval(), _batches(4, 4, 3)
    right = [[_rate(epoch, _EPOCHS, _PEAK)] * 3 for epoch in range(_EPOCHS)]
    by_batch = [[_rate(3 * e + b, _EPOCHS, _PEAK) for b in range(3)] for e in range(_EPOCHS)]
    start = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    given = network, batches, _EPOCHS, _PEAK
    call_answer(f"{name}(network, ...)", answer, *given, may_change=TRAINING)
    require_values(
        _weights(network),
        _train(start, batches, right),
        name,
        {
            "the weights have not changed: who takes the step?": _weights(start),
            "the learning rate falls within an epoch.\nLook at where the "
            "scheduler is told to go on.": _train(start, batches, by_batch),
            "the learning rate falls one epoch early.\nWhat comes first in an epoch, training or "
            "the scheduler?": _train(start, batches, [*right[1:], right[-1]]),
            "every step also uses the gradients of all steps before.\nbackward() adds to what is "
            "there: who clears it, and when?": _train(start, batches, right, accumulate=True),
            "the first step also uses gradients that were there before.\nbackward() adds to them: "
            "are they cleared before it, or after the step?": _train(
                start, batches, right, stale=1
            ),
            "a softmax comes before the cross-entropy.\nF.cross_entropy does its own.": _train(
                start, batches, right, softmax=True
            ),
            "the network trains in evaluation mode.\nLook at who switches the mode.": _train(
                start, batches, right, training=False
            ),
        },
        "the weights are not those of the recipe.\nMend only what is broken: the "
        "optimiser, the loss and the order of backward() and step() were right.",
    )
    counted = [
        int(p.num_batches_tracked or 0) for p in network.modules() if isinstance(p, nn.BatchNorm2d)
    ]
    require(
        counted == [_EPOCHS * len(batches)],
        f"{name} runs the network {counted[0]} times for {_EPOCHS} epochs of {len(batches)} "
        "batches.\nLook at how often an image goes through it.",
    )
    return f"{name} trains by the paper's recipe"
