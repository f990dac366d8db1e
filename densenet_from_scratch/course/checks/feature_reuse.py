"""Checks of the exercises of chapter 9."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.course.checks.battery import require_for_all
from densenet_from_scratch.course.checks.by_hand import mix_or_convolve_by_hand
from densenet_from_scratch.course.checks.compare import as_python, same_result
from densenet_from_scratch.course.checks.conditions import ANYTHING
from densenet_from_scratch.course.checks.core import (
    as_check,
    call_answer,
    random_maps,
    require,
    require_none,
    require_numbers,
    require_own,
    require_shape,
    require_tensor,
    require_values,
)


def _columns(widths: Sequence[int]) -> list[slice]:
    """Return the columns of each source, the oldest first."""
    ends = list(accumulate(widths))
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _widths(inputs: list[int]) -> list[int]:
    return [after - earlier for earlier, after in pairwise([0, *inputs])]


def _each(parts: Iterable[Tensor], size: Callable[[Tensor], Tensor] = Tensor.mean) -> Tensor:
    """Return one number for each part, by default its mean."""
    return torch.stack([size(part) for part in parts])


def _mean_size(part: Tensor) -> Tensor:
    return part.abs().mean()


def _mean_square(part: Tensor) -> Tensor:
    return part.square().mean()


@as_check
def source_widths(answer: Any) -> str:
    """x_0 has what reader 1 reads; every other source what the next reader reads in addition."""
    right = _widths
    name = require_numbers(
        answer,
        right,
        [([8, 12, 16, 20],), ([6, 9, 12],), ([5, 7, 12, 13],), ([3, 10],), ([4],)],
        {
            "x_0 is missing.\nReader 1 reads a source, too: "
            "which one, and how many maps?": lambda inputs: right(inputs)[1:],
            "these are the maps of all sources that a reader reads together.\nHow many of them "
            "has the reader before it read already?": lambda inputs: inputs,
            "x_0 is missing, and the last reader's own maps are counted.\nNobody in the list "
            "reads these.": lambda inputs: right(inputs)[1:] + right(inputs)[-1:],
            "there is one source too many.\nDoes the last reader of the "
            "list read what it makes?": lambda inputs: right(inputs) + right(inputs)[-1:],
            "the newest source comes first.\nThe question asks for x_0 first.": lambda inputs: (
                right(inputs)[::-1]
            ),
            "the differences have the wrong sign, and are taken from the first reader.\nWho reads "
            "more, a reader or the one before "
            "it?": lambda inputs: inputs[:1] + [inputs[0] - r for r in inputs[1:]],
            "the differences have the wrong sign.\nWho reads more, a reader or the one before "
            "it?": lambda inputs: inputs[:1] + [b - a for b, a in pairwise(inputs)],
            "these are the maps of all layers so far together.\nCompare a reader with the one "
            "just before it, not with the "
            "first.": lambda inputs: inputs[:1] + [r - inputs[0] for r in inputs[1:]],
            "every layer is taken to add as many maps as the last.\nThe list says for each reader "
            "what it reads: look at all of its "
            "differences.": lambda inputs: inputs[:1] + right(inputs)[-1:] * (len(inputs) - 1),
            "every layer is taken to add as many maps as the first.\nThe list says for each "
            "reader what it reads: look at all of its "
            "differences.": lambda inputs: inputs[:1] + right(inputs)[1:2] * (len(inputs) - 1),
        },
        "Go from each reader to the next one: which source has come in between, and with how many "
        "maps?",
        "a list of integers",
        draw=lambda r: (list(accumulate(r.randint(1, 40) for _ in range(r.randint(1, 9)))),),
    )
    return f"{name} knows how many maps each source has"


@as_check
def oldest_first(answer: Any) -> str:
    """The sources change places; the maps within a source keep their order."""
    name = require_own(answer, FunctionType)
    for shape, widths in (((2, 9, 3, 3), [4, 3, 2]), ((5, 6), [1, 5]), ((3, 6, 1, 1), [2, 2, 2])):
        what = f"{name}(weight of shape {shape}, {widths})"
        weight = random_maps(*shape)
        original = weight.clone()
        hint = "The inputs are axis 1. In which order do the sources stand there?"
        value = call_answer(what, answer, weight, widths, hint=hint)
        require_shape(value, shape, what, {}, "It is the same weight, in another order of axis 1.")
        pieces, wrong_pieces = (original.split(w, dim=1) for w in (widths[::-1], widths))
        require_values(
            value,
            torch.cat(pieces[::-1], dim=1),
            what,
            {
                "nothing has moved.\nWhich source stands at column 0, before and after?": original,
                "the maps within each source have been turned round, too.\nOnly the sources "
                "change places: what has to stay together?": original.flip(1),
                "the weight is cut as if it already began with x_0.\nIn which order do the pieces "
                "stand when you cut?": torch.cat(wrong_pieces[::-1], dim=1),
                "the maps within each source are turned round, and the sources stand where they "
                "stood.\nIt is the other way "
                "about.": torch.cat([piece.flip(1) for piece in pieces], dim=1),
                "the outputs have been turned round.\nThe inputs are axis 1.": original.flip(0),
            },
            "the columns are not in the order asked for.\nWrite down for each column of a small "
            "weight which source it reads, before and after.",
        )
    cases = [(random_maps(1, 1), [1]), (random_maps(3, 7, 5, 5), [1, 1, 4, 1])]

    def oldest(weight: Tensor, widths: list[int]) -> Tensor:
        return torch.cat(weight.split(widths[::-1], dim=1)[::-1], dim=1)

    require_for_all(answer, oldest, cases, False)
    return f"{name} puts the oldest source first and keeps each source together"


def _strength(weight: Tensor, widths: Sequence[int], gamma: Tensor | None = None) -> Tensor:
    scaled = weight.detach().abs()
    if gamma is not None:
        scaled = scaled * gamma.detach().abs().reshape(1, -1, *[1] * (weight.ndim - 2))
    return _each(scaled.split(list(widths), dim=1))


def _measure_strength(
    answer: Any, name: str, weight: Tensor, widths: list[int], *gamma: Tensor
) -> tuple[str, Any]:
    """Call the answer; require that it only looks, and gives one number for each source."""
    what = f"{name}(weight of shape {tuple(weight.shape)}, {widths}{', gamma' if gamma else ''})"
    hint = "Which axis holds the inputs? And does it work for 2 axes (a linear layer) and for 4?"
    value = call_answer(what, answer, weight, widths, *gamma, hint=hint)
    outputs, inputs = weight.shape[:2]
    require_shape(
        value,
        (len(widths),),
        what,
        {
            "One number for each source, not one for all of them.": (),
            "One number for each *source*, not for each map.": (inputs,),
            "The outputs are still apart: the mean is over them, too.": (outputs, len(widths)),
        },
        "One number for each source.",
    )
    require(
        not value.requires_grad,
        f"{what} records a graph.\nNobody will call backward() on a measurement: look for what "
        "takes a tensor out of the graph.",
    )
    return what, value


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(random_maps(*shape))


@as_check
def strength_values(answer: Any) -> str:
    """The strength is the mean absolute weight over all that belongs to a source."""
    name = require_own(answer, FunctionType)
    for shape, widths in (((9, 9, 3, 3), [4, 3, 2]), ((5, 6), [1, 5]), ((4, 6, 1, 1), [6])):
        weight = _parameter(*shape)
        what, value = _measure_strength(answer, name, weight, widths)
        w, right = weight.detach(), _strength(weight, widths)
        parts = w.split(widths, dim=1)
        sums, squares = _each(parts, lambda part: part.abs().sum()), _each(parts, _mean_square)
        mistakes = {
            "weights of opposite sign cancel.\nLook for what the paper takes of each weight "
            "before the mean.": _each(parts),
            "the absolute value of the mean is taken.\nDo weights of 5 and -5 make a connection "
            "of strength 0?": _each(parts).abs(),
            "this is the root of the mean square.\nThe chapter takes the mean absolute "
            "value.": squares.sqrt(),
            "this is the mean square.\nThe chapter takes the mean absolute value.": squares,
            "this is a sum, and a source with many maps gets a bonus for that.\nLook at what the "
            "chapter's formula divides by.": sums,
            "only the source's maps are divided by, and not the outputs and the kernel's places.\n"
            "How many weights belong to a source?": sums / torch.tensor(widths),
            "each strength is divided by the largest.\nThe percents are for later.": right
            / right.max(),
            "these are percents of the strongest.\nThe percents are for later.": 100
            * right
            / right.max(),
            "the newest source comes first.\nThe widths begin with x_0.": right.flip(0),
            "this is the largest weight of each source.\nThe chapter takes a mean.": _each(
                parts, lambda part: part.abs().amax()
            ),
        }
        if len(w) == w.shape[1]:
            message = "the outputs are cut into sources.\nWhich axis of a weight is its input?"
            mistakes[message] = _each(w.split(widths), _mean_size)
        require_values(
            value.double(),
            right,
            what,
            mistakes,
            "the strengths are wrong.\nTake the chapter's two rows (1, -3, 2) and (-1, 1, 4), and "
            "follow them through your code by hand.",
        )
    return f"{name} takes the mean absolute weight of each source"


@as_check
def strength_gamma(answer: Any) -> str:
    """With γ every map's weights are multiplied by its own |γ| before the mean."""
    name = require_own(answer, FunctionType)
    for shape, widths in (((7, 7, 3, 3), [4, 3]), ((5, 6), [1, 3, 2])):
        weight, gamma = _parameter(*shape), _parameter(shape[1])
        what, value = _measure_strength(answer, name, weight, widths, gamma)
        w, g, plain = weight.detach(), gamma.detach(), _strength(weight, widths)
        by_map = w.abs().transpose(0, 1).flatten(1).mean(dim=1)
        mistakes = {
            "γ makes no difference.\nLook at what your code does with the third argument.": plain,
            "a negative γ makes a connection weaker.\nDoes a sign say how much?": _each(
                (by_map * g).split(widths)
            ),
            "the mean weight is multiplied by the mean |γ|.\nWhat if the large weights stand on "
            "the maps with the small γ? Each map has its "
            "own.": plain * _each(g.split(widths), _mean_size),
            "the γ of a source are averaged first.\nEach map has its own.": plain
            * _each(g.split(widths)).abs(),
            "the weights are divided by |γ|.\nA map with a large γ reaches the convolution with "
            "large values: does that make its connection "
            "weaker?": _each((by_map / g.abs()).split(widths)),
            "γ is squared.\nThe chapter multiplies by |γ|.": _each(
                (by_map * g.square()).split(widths)
            ),
            "every source is multiplied by the mean of all |γ|.\nEach map has its own.": plain
            * g.abs().mean(),
        }
        if len(w) == w.shape[1]:
            rows = w.abs() * g.abs().reshape(-1, 1, 1, 1)
            mistakes |= {
                "γ is multiplied along the outputs.\nThe normalisation stands *before* the "
                "convolution: whose maps does it scale?": _each(rows.split(widths, dim=1))
            }
        require_values(
            value.double(),
            _strength(w, widths, g),
            what,
            mistakes,
            "the strengths with γ are wrong.\nThere is a γ for each input map: where in your code "
            "are the maps still apart?",
        )
    return f"{name} multiplies each map's weights by its own |γ|"


def _adds(conv: nn.Conv2d, x: Tensor, piece: slice) -> Tensor:
    """Return what these columns of ``x`` add to the output."""
    only = torch.zeros_like(x)
    only[:, piece] = x[:, piece]
    return mix_or_convolve_by_hand(conv, only).detach()


_Case = tuple[int, list[int], int, tuple[int, int, int]]
_READERS: list[_Case] = [(3, [4, 3, 2], 3, (2, 5, 4)), (6, [2, 5], 1, (3, 4, 6))]


def _call_contributions(answer: Any, name: str, case: _Case) -> Any:
    outputs, widths, kernel, (images, height, width) = case
    conv = nn.Conv2d(sum(widths), outputs, kernel, padding=kernel // 2, bias=False).double()
    with torch.no_grad():
        conv.weight.normal_()
    active = random_maps(images, sum(widths), height, width).clamp(min=0)
    what = f"{name}(a {kernel}×{kernel} convolution, its maps, {widths})"
    originals = (conv.weight.detach().clone(), active.clone())
    hint = "The convolution wants as many maps as ever, whatever is in them: do the sizes fit?"
    value = call_answer(what, answer, conv, active, widths, hint=hint)
    return what, value, conv, active, originals


@as_check
def contributions_side_effects(answer: Any) -> str:
    """Measuring contributions changes neither maps nor weights and records no graph."""
    name = require_own(answer, FunctionType)
    what, value, *_ = _call_contributions(answer, name, _READERS[0])
    require(
        not require_tensor(value, what).requires_grad,
        f"{what} records a graph.\nNobody will call backward() on a measurement: look for the "
        "context that says so.",
    )
    return f"{name} leaves maps and weights alone"


@as_check
def contributions_values(answer: Any) -> str:
    """A contribution is the mean absolute value of what one source adds to the output."""
    name = require_own(answer, FunctionType)
    for case in _READERS:
        what, value, conv, _, (weight, x) = _call_contributions(answer, name, case)
        pieces, whole = _columns(case[1]), mix_or_convolve_by_hand(conv, x).detach()
        require_shape(
            value,
            (len(pieces),),
            what,
            {
                "One number for each source, not one for all of them.": (),
                "One number for each *source*, not for each map.": (x.shape[1],),
                "What each source adds is right there: look at what is to be taken of it.": (
                    len(pieces),
                    *whole.shape,
                ),
            },
            "One number for each source.",
        )
        added = [_adds(conv, x, piece) for piece in pieces]
        rest, right = [whole - part for part in added], _each(added, _mean_size)
        behind = [_adds(conv, x, slice(piece.start, None)) for piece in pieces]
        begin = [_adds(conv, x, slice(0, width)) for width in case[1]]
        require_values(
            value.double(),
            right,
            what,
            {
                "this is what all the *other* sources add.\nLook at which maps are set to zero, "
                "and which stay.": _each(rest, _mean_size),
                "values of opposite sign cancel.\nDoes a source that adds 5 here and takes 5 away "
                "there add nothing?": [_each(added), _each(added).abs()],
                "two mean sizes are subtracted.\nTake the difference of the outputs first, pixel "
                "by pixel, and its size then.": _mean_size(whole) - _each(rest, _mean_size),
                "the mean weight is multiplied by the mean value.\nA sum of many products, some "
                "of them negative, is not as large as that: let the convolution do "
                "it.": _strength(weight, case[1]) * _each(x.split(case[1], dim=1)),
                "this is a sum, and grows with the number of images and pixels.\nThe question "
                "asks for a mean.": _each(added, lambda part: part.abs().sum()),
                "a ReLU follows the convolution.\nWhat a source takes away counts, too.": _each(
                    added, lambda part: part.clamp(min=0).mean()
                ),
                "this is the root of the mean square.\nThe question asks for the mean absolute "
                "value.": _each(added, _mean_square).sqrt(),
                "the sources before it are read, too.\nLook at where a source's columns "
                "begin.": _each(accumulate(added), _mean_size),
                "the sources behind it are read, too.\nLook at where a source's columns "
                "end.": _each(behind, _mean_size),
                "every source is looked for at column 0.\nWho moves the beginning on?": _each(
                    begin, _mean_size
                ),
                "the convolution is not padded, so the pixels at the edge are missing.\nLook at "
                "how the reader's own convolution treats "
                "them.": _each((F.conv2d(x[:, p], weight[:, p]) for p in pieces), _mean_size),
                "these are shares of the whole output.\nThe question asks for the size "
                "itself.": right / _mean_size(whole),
            },
            "the contributions are wrong.\nWhat does the convolution give if all maps but those of "
            "one source are zero?",
        )
    return f"{name} measures what each source adds"


def _readers(number: int) -> str:
    return f"{number} reader{'s' if number > 1 else ''}"


def _filled(matrix: Tensor) -> Tensor:
    """Return a matrix that can be compared: NaN equals nothing."""
    return matrix.nan_to_num(-1)


def _matrix(weights: Sequence[Tensor], newest_first: bool = False) -> Tensor:
    widths = _widths([weight.shape[1] for weight in weights])
    matrix = torch.full((len(weights), len(weights)), torch.nan)
    for column, weight in enumerate(weights):
        strengths = _strength(weight, widths[: column + 1])
        matrix[: column + 1, column] = strengths.flip(0) if newest_first else strengths
    return matrix


def _require_gaps(value: Tensor, right: Tensor, what: str) -> None:
    """Require NaN where there is no connection, and nowhere else."""
    gaps, expected = value.isnan(), right.isnan()
    if torch.equal(gaps, expected):
        return
    require(
        bool(gaps.any()),
        f"{what} has a number where there is no connection.\nA 0 would say: it could read, and "
        "does not. What stands in the chapter's matrix there?",
    )
    require(not bool(gaps.all()), f"{what} is NaN everywhere.\nWhich operation does NaN spread in?")
    require(
        not torch.equal(gaps, expected.T),
        f"{what} has its numbers below the diagonal.\nWhich of the two, source or reader, has the "
        "rows?",
    )
    raise AssertionError(
        f"{what} has its NaN in the wrong places.\nHow many sources does reader t read, and which "
        "are they?"
    )


@as_check
def block_matrix(answer: Any) -> str:
    """Row s, column t - 1 of the matrix is the strength of source s for reader t."""
    name = require_own(answer, FunctionType)
    shapes: list[list[tuple[int, ...]]] = [
        [(3, 5, 3, 3), (2, 8, 3, 3), (4, 10, 3, 3), (7, 14)],
        [(8, 4, 1, 1), (8, 6, 1, 1), (4, 8, 1, 1)],
        [(3, 4)],
    ]
    for block in shapes:
        weights = [nn.Parameter(torch.randn(*shape)) for shape in block]
        if len(block) == 3:
            weights[1].data[:, :4] = 0  # a connection that is there, and of no strength
        right, n = _matrix(weights), len(weights)
        what = f"{name}(weights of {_readers(n)})"
        hint = "Reader t reads the first t sources only: how many widths does it need?"
        value = call_answer(what, answer, weights, hint=hint)
        require_shape(
            value,
            (n, n),
            what,
            {
                "What follows the block is a reader, too.": [(n - 1, n - 1), (n, n - 1)],
                "How many sources does the last reader read?": (n + 1, n + 1),
            },
            "How many sources are there, and how many readers?",
        )
        _require_gaps(value, right, what)
        percents = 100 * right / right.nan_to_num(0).amax(dim=0)
        newest_first = _matrix(weights, newest_first=True)
        require_values(
            _filled(value.detach().to(right.dtype)),
            _filled(right),
            what,
            {
                "the newest source stands in the top row.\nThe top row is x_0.": _filled(
                    newest_first
                ),
                "these are percents already.\nLook at which of the two functions makes "
                "them.": _filled(percents),
            },
            "the strengths are wrong, or not where they should be.\nPrint the strengths of reader "
            "2 alone, and look for them in the matrix.",
        )
    return f"{name} has a number for every connection, and NaN elsewhere"


@as_check
def reader_percent(answer: Any) -> str:
    """In every column the strongest connection becomes 100, and NaN stays NaN."""
    name = require_own(answer, FunctionType)
    for readers, unit in ((4, 1.0), (2, 1.0), (1, 1.0), (3, 1e-7)):
        matrix = unit * (torch.rand(readers, readers) + 0.1).triu()
        matrix[matrix == 0] = torch.nan
        original, strengths = matrix.clone(), matrix.nan_to_num(0)
        what = f"{name}(a matrix of {_readers(readers)})"
        value = call_answer(what, answer, matrix)
        right = 100 * original / strengths.amax(dim=0)
        require_shape(value, (readers, readers), what, {}, "One percent for each strength.")
        hundred = {  # what is 100 % in it
            "all are percents of the block's strongest connection.\nIn the chapter, what is 100 % "
            "in each column?": strengths.max(),
            "each *source's* strongest connection is 100 %.\nWhich of the two, rows or columns, "
            "are the readers?": strengths.amax(dim=1, keepdim=True),
            "the columns are divided by what belongs to the rows.\nLook at the axis of the "
            "maximum.": strengths.amax(dim=1),
            "these are shares from 0 to 1.\nThe question asks for percents.": 100
            * strengths.amax(dim=0),
            "each column adds up to 100.\nThe chapter compares with the strongest, not with the "
            "sum.": strengths.sum(dim=0),
            "each column is compared with its mean.\nWhat is 100 % in the "
            "chapter?": original.nanmean(dim=0),
            "each column is compared with its newest source.\nWhich one is the "
            "strongest?": original.diagonal(),
            "each column is compared with x_0.\nWhich one is the strongest?": original[0],
        }
        _require_gaps(value, right, what)
        require_values(
            _filled(value.to(right.dtype)),
            _filled(right),
            what,
            {message: _filled(100 * original / by) for message, by in hundred.items()},
            "the percents are wrong.\nTake one column by itself: what does it have to be divided "
            "by, so that its largest number becomes 100?",
        )
    return f"{name} compares each reader with its own strongest connection"


class _Survey:
    """A weight and a loss that depends on it, in which sources interact."""

    widths = (4, 3, 2)

    def __init__(self) -> None:
        self.weight = _parameter(3, sum(self.widths), 3, 3)
        self.original = self.weight.detach().clone()
        self.factors = random_maps(2, *self.weight.shape)

    def of(self, weight: Tensor) -> float:
        first, second = (self.factors * weight.detach()).flatten(1).sum(dim=1)
        return float(first**2 + second)

    def loss(self) -> float:
        return self.of(self.weight)

    def without(self, pieces: Sequence[slice]) -> float:
        weight = self.original.clone()
        for piece in pieces:
            weight[:, piece] = 0
        return self.of(weight)


def _call_rises(answer: Any, name: str, survey: _Survey) -> tuple[str, Any]:
    what = f"{name}(weight, {survey.widths}, loss)"
    hint = "Mend only what is broken: the rest of the function ran."
    given = survey.weight, survey.widths, survey.loss
    # What it leaves behind has a check, and messages, of its own.
    result = as_python(call_answer(what, answer, *given, hint=hint, may_change=ANYTHING))
    hint = "Is a `return` missing?" if result is None else "The question asks for a list of floats."
    require(
        type(result) in (list, tuple) and all(type(value) in (int, float) for value in result),
        f"{what} does not give a list of numbers.\n{hint}",
    )
    require(
        len(result) == len(survey.widths),
        f"{what} gives {len(result)} numbers.\nThere is one for each source.",
    )
    return what, result


@as_check
def rises_side_effects(answer: Any) -> str:
    """After the survey the weight is what it was before."""
    name, survey = require_own(answer, FunctionType), _Survey()
    _call_rises(answer, name, survey)
    after = survey.weight.detach()
    zeros = bool((after == 0).any())
    require(
        torch.equal(after, survey.original) and survey.weight.requires_grad,
        f"{name} leaves the network changed"
        + (": some of its weights are 0 now" if zeros else "")
        + ".\nWhat exactly is it that gets put back? Print it just before.",
    )
    with torch.no_grad():  # somebody's own, which stays
        _call_rises(answer, name, _Survey())
    return f"{name} gives the network back as it was"


@as_check
def rises_values(answer: Any) -> str:
    """Each source is taken away by itself, and the loss is compared with the whole network's."""
    name, survey = require_own(answer, FunctionType), _Survey()
    what, result = _call_rises(answer, name, survey)
    pieces = _columns(survey.widths)
    whole = survey.without([])
    right = [survey.without([piece]) - whole for piece in pieces]
    added = [survey.without(pieces[: n + 1]) for n in range(len(pieces))]
    alone = [survey.without([p for p in pieces if p != piece]) for piece in pieces]
    begin = [survey.without([slice(0, width)]) for width in survey.widths]
    outputs = [survey.original.clone() for _ in pieces]
    for weight, piece in zip(outputs, pieces, strict=True):
        weight[piece] = 0

    def rises(losses: Iterable[float]) -> tuple[float, ...]:
        return tuple(loss - whole for loss in losses)

    mistakes = {
        "a source is taken away while those before it are still missing.\nWhat does the line that "
        "should put it back write?": rises(added),
        "each source is compared with the network that lacks those before it.\nThe question is "
        "what *one* missing source does: compare with the whole "
        "network.": tuple(after - earlier for earlier, after in pairwise([whole, *added])),
        "the loss never changes.\nWhose weight does `loss` look at, and whose has been set to "
        "zero?": (0.0,) * len(pieces),
        "a loss that rises gets a negative number.\nMind the sign.": tuple(-v for v in right),
        "these are losses, not their rises.\nWhat do you subtract?": tuple(
            survey.without([piece]) for piece in pieces
        ),
        "all sources *but* one are taken away.\nLook at what is set to zero.": rises(alone),
        "every source is looked for at column 0.\nWho moves the beginning on?": rises(begin),
        "outputs are taken away, not sources.\nWhich axis of a weight is its input?": rises(
            map(survey.of, outputs)
        ),
    }
    require_none(result, right, mistakes, what, same_result)
    require(
        same_result(result, right),
        f"{what}: the rises are wrong.\nMend only what is broken: what is taken away, and what the "
        "loss is compared with, was right.",
    )
    return f"{name} takes away one source at a time"
