"""Pictures of data and of what was measured."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from densenet_from_scratch.arguments import check_choice, check_count, check_mapping
from densenet_from_scratch.course.plots.base import COLOURS, MARKERS, PALETTE, new_axes
from densenet_from_scratch.data import Data
from densenet_from_scratch.train import History


def image_grid(data: Data, per_class: int = 1) -> Figure:
    """Draw the first ``per_class`` training images of every class, a column a class."""
    if not isinstance(data, Data):
        raise ValueError(f"data must be what load_data returns, got {data!r}")
    check_count("per_class", per_class)
    by_class: dict[int, list[Tensor]] = {label: [] for label in range(data.num_classes)}
    for index in range(len(data.train)):  # type: ignore[arg-type]  # all our data sets have a length
        image, label = data.train[index]
        if len(by_class[int(label)]) < per_class:
            by_class[int(label)].append(image)
        if all(len(images) == per_class for images in by_class.values()):
            break
    fewest = min(map(len, by_class.values()))
    if fewest < per_class:
        raise ValueError(f"per_class must be at most {fewest} for {data.name!r}, got {per_class}")
    figure, axes = new_axes(
        0.72 * data.num_classes, 0.3 + 0.75 * per_class, per_class, data.num_classes
    )
    for position, axis in enumerate(axes):
        row, label = divmod(position, data.num_classes)
        draw_image(axis, by_class[label][row])
        if row == 0:
            axis.set_title(data.class_names[label], loc="center")
    return figure


def draw_image(axis: Axes, image: Tensor) -> None:
    """Draw one image (C, H, W), stretched to the full range of grey or colour."""
    image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-8)
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)


def training_curves(
    histories: Mapping[str, History | Sequence[History]], quantity: str = "train_loss"
) -> Figure:
    """Draw a quantity by epoch, a line a run, runs of one name (its seeds) in one colour.

    Args:
        histories: a run, or the runs with several seeds, by name.
        quantity: ``"train_loss"``, ``"train_accuracy"``, ``"eval_loss"`` or ``"eval_accuracy"``.

    Raises:
        ValueError: ``quantity`` is none of these, or there is no run, or none that ended an epoch.
    """
    labels = {
        "train_loss": "training loss (nats)",
        "train_accuracy": "training accuracy",
        "eval_loss": "test loss (nats)",
        "eval_accuracy": "test accuracy",
    }
    check_choice("quantity", quantity, labels)
    check_mapping("histories", histories, "at least one run")
    figure, [axis] = new_axes()
    ends = []
    for number, (name, runs) in enumerate(histories.items()):
        given, runs = runs, [runs] if isinstance(runs, History) else runs
        runs = list(runs) if isinstance(runs, Iterable) else [runs]
        if not all(isinstance(run, History) for run in runs):
            raise ValueError(f"histories[{name!r}] must be a History or several, got {given!r}")
        if not runs or not all(map(len, runs)):
            raise ValueError(f"histories[{name!r}] must have finished an epoch, got 0 epochs")
        colour, dashes = PALETTE[number % 7], ("-", "--", ":", "-.")[number % 4]
        for run in runs:
            values = getattr(run, quantity)
            axis.plot(range(1, len(values) + 1), values, dashes, color=colour)
        longest = max(runs, key=len)
        last = sum(getattr(run, quantity)[-1] for run in runs) / len(runs)
        ends.append((last, len(longest), name, colour))
    low, high = axis.get_ylim()
    _label_ends(axis, ends, gap=(high - low) * 0.075)
    axis.set_xlabel("epoch")
    axis.set_ylabel(labels[quantity])
    last_epoch = max(epoch for _, epoch, _, _ in ends)
    ticks = MaxNLocator(integer=True).tick_values(1, last_epoch)
    axis.set_xticks([tick for tick in ticks if 1 <= tick <= last_epoch])  # none under the names
    return figure


def _label_ends(axis: Axes, ends: list[tuple[float, int, str, str]], gap: float) -> None:
    """Write each line's name at its right end, moved apart where they would overlap."""
    height = float("-inf")
    for value, epoch, name, colour in sorted(ends):
        height = max(value, height + gap)
        axis.annotate(f" {name}", (epoch, height), color=colour, va="center", annotation_clip=False)
    axis.margins(x=0.02)
    longest = max(len(name) for _, _, name, _ in ends)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + (high - low) * 0.018 * longest)


def by_depth(
    results: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str, log: bool = False
) -> Figure:
    """Draw a result against depth: a point a seed, and a line through each depth's mean.

    Args:
        results: for a kind of connection (``"plain"``, ``"residual"``, ``"dense"``), for each depth
            in layers, the results of all seeds.
        ylabel: what the results are, with the unit.
        log: a logarithmic vertical axis.

    Raises:
        ValueError: a kind is unknown, or there is no result of one.
    """
    _check_results("results", results)
    for kind, by in results.items():
        _check_results(f"results[{kind!r}]", by)
    figure, [axis] = new_axes()
    for kind, by in results.items():
        check_choice("kind", kind, COLOURS)
        depths = sorted(by)
        means = [sum(by[depth]) / len(by[depth]) for depth in depths]
        axis.plot(depths, means, color=COLOURS[kind])
        for depth in depths:
            axis.plot(
                [depth] * len(by[depth]), by[depth], MARKERS[kind], color=COLOURS[kind], alpha=0.75
            )
        axis.annotate(f"  {kind}", (depths[-1], means[-1]), color=COLOURS[kind], va="center")
    axis.set_xticks(sorted({depth for by in results.values() for depth in by}))
    axis.set_xlabel("layers")
    axis.set_ylabel(ylabel)
    axis.margins(x=0.14)
    if log:
        axis.set_yscale("log")
    return figure


def by_seed(results: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Draw a result of several networks: a row each, in it a dot a seed and a bar at their mean.

    Args:
        results: for each network, the results of all seeds.
        xlabel: what the results are, with the unit.

    Raises:
        ValueError: there is no network, or one has no result.
    """
    _check_results("results", results)
    figure, [axis] = new_axes(7.2, 0.9 + 0.5 * len(results))
    for row, (values, colour) in enumerate(zip(results.values(), cycle(PALETTE), strict=False)):
        # Seeds often agree to the digit; a little height keeps their dots apart.
        heights = [row + 0.12 * (number % 3 - 1) for number in range(len(values))]
        axis.plot(values, heights, "o", color=colour, alpha=0.75)
        axis.plot([sum(values) / len(values)] * 2, [row - 0.3, row + 0.3], color=colour)
    axis.set_yticks(range(len(results)), list(results))
    axis.set_ylim(len(results) - 0.5, -0.5)  # the first row on top
    axis.set_xlabel(xlabel)
    axis.grid(False, axis="y")
    return figure


def gradient_profile(norms: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the gradient norm of each layer's weights, from the stem (0) to the last layer.

    Args:
        norms: for each kind of connection, the norms in order of depth.

    Raises:
        ValueError: a kind is unknown, or there is no norm of one.
    """
    _check_results("norms", norms)
    figure, [axis] = new_axes()
    for kind, values in norms.items():
        check_choice("kind", kind, COLOURS)
        axis.semilogy(
            range(len(values)), values, MARKERS[kind] + "-", color=COLOURS[kind], markersize=4
        )
        axis.annotate(f"  {kind}", (len(values) - 1, values[-1]), color=COLOURS[kind], va="center")
    axis.set_xlabel("layer (0 is the stem)")
    axis.set_ylabel("gradient norm of its weights")
    axis.margins(x=0.12)
    return figure


def _check_results(name: str, results: Mapping) -> None:
    for key, values in check_mapping(name, results, "results").items():
        if not isinstance(values, Sized) or len(values) == 0:
            raise ValueError(f"{name}[{key!r}] must hold at least one result, got {values!r}")
