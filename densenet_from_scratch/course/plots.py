"""The figures of the chapters. They draw what they are given and compute nothing.

Every function returns a matplotlib figure; :func:`show` puts it in a notebook with a text
alternative. Figures are made without pyplot, so nothing stays open behind the reader's back.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from densenet_from_scratch.arguments import check_choice, check_count
from densenet_from_scratch.data import Data
from densenet_from_scratch.train import History

STYLE = Path(__file__).with_name("style.mplstyle")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart."""
COLOURS = dict(zip(("plain", "residual", "dense"), PALETTE, strict=False))
"""One colour a kind of connection, the same in every figure."""
MARKERS = {"plain": "o", "residual": "s", "dense": "^"}
"""And one marker, so that no figure depends on colour."""

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def new_figure(width: float = 7.2, height: float = 3.6) -> Figure:
    """Return an empty figure in the course's style; sizes in inches."""
    with style.context(STYLE):
        return Figure(figsize=(width, height))


def new_axes(
    width: float = 7.2,
    height: float = 3.6,
    rows: int = 1,
    columns: int = 1,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the course's style and its axes in reading order; sizes in inches.

    Args:
        width, height: size of the whole figure.
        rows, columns: the grid of axes.
        sharex, sharey: give all axes one horizontal or vertical scale.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG image."""
    buffer = io.BytesIO()
    with style.context(STYLE):
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def show(figure: Figure, caption: str) -> None:
    """Display a figure in the notebook with its caption.

    Notebook pages give images no text alternative of their own, so the caption is real text.

    Args:
        figure: what to show.
        caption: what the figure says, complete enough for readers who cannot see it.

    Raises:
        ValueError: ``caption`` is empty.
    """
    if not caption.strip():
        raise ValueError(f"caption must say what the figure shows, got {caption!r}")
    from IPython.display import Markdown, display  # only notebooks have it

    bundle = {"image/png": to_png(figure), "text/plain": caption}
    display(bundle, raw=True, metadata={"image/png": {"alt": caption}})
    display(Markdown(f"*{caption}*"))


def image_grid(data: Data, per_class: int = 1) -> Figure:
    """Draw the first ``per_class`` training images of every class, a column a class."""
    check_count("per_class", per_class)
    found: dict[int, list[Tensor]] = {label: [] for label in range(data.num_classes)}
    for index in range(len(data.train)):  # type: ignore[arg-type]  # all our data sets have a length
        image, label = data.train[index]
        if len(found[int(label)]) < per_class:
            found[int(label)].append(image)
        if all(len(images) == per_class for images in found.values()):
            break
    fewest = min(map(len, found.values()))
    if fewest < per_class:
        raise ValueError(f"per_class must be at most {fewest} for {data.name!r}, got {per_class}")
    figure, axes = new_axes(
        0.72 * data.num_classes, 0.3 + 0.75 * per_class, per_class, data.num_classes
    )
    for position, axis in enumerate(axes):
        row, label = divmod(position, data.num_classes)
        draw_image(axis, found[label][row])
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
    """
    labels = {
        "train_loss": "training loss (nats)",
        "train_accuracy": "training accuracy",
        "eval_loss": "test loss (nats)",
        "eval_accuracy": "test accuracy",
    }
    check_choice("quantity", quantity, labels)
    if not histories:
        raise ValueError("histories must hold at least one run, got none")
    figure, [axis] = new_axes()
    ends = []
    for number, (name, runs) in enumerate(histories.items()):
        runs = [runs] if isinstance(runs, History) else list(runs)
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
    """
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
    if not results or not all(results.values()):
        raise ValueError(f"results must hold a result of every network, got {dict(results)!r}")
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
    """
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


def connectivity(
    kind: str, num_layers: int, highlight: int | None = None, axis: Axes | None = None
) -> Figure:
    """Draw which maps each layer reads: x_0 to x_L as dots in a row, connections as arrows.

    Args:
        kind: ``"plain"``, ``"residual"`` or ``"dense"``.
        num_layers: L.
        highlight: draw what layer l reads in full colour and the rest faintly.
        axis: draw here rather than in a figure of its own.

    Raises:
        ValueError: an argument is out of range.
    """
    check_choice("kind", kind, COLOURS)
    check_count("num_layers", num_layers)
    if highlight is not None and highlight not in range(1, num_layers + 1):
        raise ValueError(f"highlight must be a layer from 1 to {num_layers}, got {highlight!r}")
    # One unit is the distance between neighbours; the highest arch rises 0.21 of its length.
    bottom, top = -0.3, {"plain": 0.3, "residual": 0.6}.get(kind, max(0.3, 0.21 * num_layers + 0.1))
    if axis is None:
        unit = min(1.1, 7.2 / (num_layers + 1))  # inches
        figure, [axis] = new_axes(unit * (num_layers + 1), unit * (top - bottom))
    else:
        figure = axis.get_figure()  # type: ignore[assignment]
    colour = COLOURS[kind]
    for target in range(1, num_layers + 1):
        strong = highlight in (None, target)
        look = {"color": colour, "alpha": 0.9 if strong else 0.15, "linewidth": 1.6}
        first = 0 if kind == "dense" else target - 1
        for source in range(first, target):
            # Longer connections arch higher, so that they do not hide each other.
            bend = 0.0 if source == target - 1 else -0.42
            _arrow(axis, source, target, bend, look)
        if kind == "residual":
            _arrow(axis, target - 1, target, -0.9, {**look, "linestyle": (0, (3, 2))})
    dots = range(num_layers + 1)
    axis.plot(
        dots, [0] * len(dots), "o", markersize=17, color="white", markeredgecolor="black", zorder=3
    )
    for index in dots:
        # A subscript of plain text: a widget draws this often, and mathematics takes longer.
        label = "x" + str(index).translate(SUBSCRIPTS)
        font: dict[str, Any] = {"fontsize": 10, "style": "italic", "in_layout": False}
        axis.text(index, 0, label, ha="center", va="center", zorder=4, **font)
    axis.set_xlim(-0.5, num_layers + 0.5)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal")
    axis.set_axis_off()
    return figure


class Stage(NamedTuple):
    """One part of a network, as :func:`architecture` draws it.

    Attributes:
        name: what stands below it.
        layers: dense layers, or 0 for a stem, a transition or a head.
        channels_in: maps that enter its first layer.
        channels_out: maps that leave it.
        size: height and width of its maps, in pixels.
        parameters: how many it has.
    """

    name: str
    layers: int
    channels_in: int
    channels_out: int
    size: int
    parameters: int


def architecture(stages: Sequence[Stage]) -> Figure:
    """Draw a network to scale, from left to right: above the size of its maps, below their number.

    A dense block is as wide as it has layers, and the parts between blocks share one small width.

    Args:
        stages: the parts, in the order in which they run.

    Raises:
        ValueError: there is no stage, or one has a negative count.
    """
    if not stages:
        raise ValueError(f"stages must hold at least one stage, got {stages!r}")
    for index, stage in enumerate(stages):
        for field, value in list(stage._asdict().items())[1:]:
            minimum = 0 if field in ("layers", "parameters") else 1
            check_count(f"stages[{index}].{field}", value, minimum)
    narrow = max(1.0, 0.1 * sum(stage.layers for stage in stages))
    highest = max(max(stage.channels_in, stage.channels_out) for stage in stages)
    figure, [sizes, channels] = new_axes(8.4, 4.1, rows=2, sharex=True)
    figure.set_layout_engine("none")  # fixed places: nothing jumps in a widget, and it is faster
    sizes.set_position((0.03, 0.6, 0.96, 0.39))
    channels.set_position((0.03, 0.2, 0.96, 0.39))
    look: dict[str, Any] = {"fontsize": 9, "textcoords": "offset points"}
    left, centres = 0.0, []
    for stage in stages:
        right = left + (stage.layers or narrow)
        corners = [left, left, right, right]
        colour = COLOURS["dense"] if stage.layers else "0.6"
        sizes.fill(corners, [0, stage.size, stage.size, 0], color=colour, alpha=0.55)
        channels.fill(
            corners, [0, stage.channels_in, stage.channels_out, 0], color=colour, alpha=0.55
        )
        centres.append((left + right) / 2)
        if stage.layers:
            edges = [left + layer for layer in range(stage.layers + 1)]
            sizes.vlines(edges, 0, stage.size, color="white", linewidth=0.7)
            text = f"{stage.size}×{stage.size}\n{stage.layers} layers"
            sizes.annotate(
                text, (centres[-1], stage.size), (0, 1), ha="center", va="bottom", **look
            )
            inside = stage.channels_in > 0.1 * highest  # or too low to hold a number
            channels.annotate(
                str(stage.channels_in),
                (left, stage.channels_in),
                (2, -3 if inside else 3),
                va="top" if inside else "bottom",
                **look,
            )
            channels.annotate(
                str(stage.channels_out), (right, stage.channels_out), (0, 3), ha="right", **look
            )
        left = right
    names = [f"{_short(stage.parameters)}\n{stage.name}" for stage in stages]
    channels.set_xticks(centres, names, fontsize=9)
    channels.set_xlabel("parameters of each part")
    for axis, label in ((sizes, "side (pixels)"), (channels, "feature maps")):
        axis.set_ylabel(label)
        axis.set_yticks([])  # the numbers stand beside what they measure
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.grid(False)
        axis.margins(x=0.01, y=0.28)
        axis.set_ylim(bottom=0)
    return figure


def connection_heatmap(
    matrices: Mapping[str, Tensor],
    readers: Sequence[str],
    highlight: int | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Draw how strongly each reader weighs each source, as percent of its strongest connection.

    Args:
        matrices: for each block, by its name, strengths (sources, readers) as
            :func:`~densenet_from_scratch.measure.connection_strengths` returns them.
        readers: what stands in the last column of each: a transition, a classifier. The others
            are the block's layers.
        highlight: frame column ``highlight`` (from 1) rather than the last.
        axes: draw here, one for each matrix, rather than in a figure of its own.

    Raises:
        ValueError: there is no matrix, or not a reader for each.
    """
    if not matrices or len(readers) != len(matrices):
        raise ValueError(
            f"readers must name one of each of {len(matrices)} matrices, got {list(readers)}"
        )
    if axes is None:
        columns = sum(matrix.shape[1] for matrix in matrices.values())
        height = 0.95 + 0.4 * max(matrix.shape[0] for matrix in matrices.values())
        figure, axes = new_axes(0.9 * len(matrices) + 0.33 * columns, height, 1, len(matrices))
    else:
        figure = axes[0].get_figure()  # type: ignore[assignment]
    for axis, (name, matrix), reader in zip(axes, matrices.items(), readers, strict=True):
        sources, targets = matrix.shape
        percent = 100 * matrix / matrix.nan_to_num(0).amax(dim=0)
        # Cividis looks the same to people with any kind of colour vision.
        axis.imshow(percent.numpy(), cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row in range(sources):
            for column in range(targets):
                value = percent[row, column].item()
                if value == value:  # not NaN
                    colour = "white" if value < 55 else "black"
                    look: dict[str, Any] = {"fontsize": 8, "color": colour, "in_layout": False}
                    axis.text(column, row, f"{value:.0f}", ha="center", va="center", **look)
        framed = targets - 1 if highlight is None else highlight - 1
        frame = Rectangle(
            (framed - 0.5, -0.5), 1, sources, fill=False, linewidth=2, edgecolor=PALETTE[1]
        )
        axis.add_patch(frame)
        layers = [str(layer) for layer in range(1, targets)]
        axis.set_xticks(range(targets), [*layers, reader], fontsize=9)
        names = ["x" + str(source).translate(SUBSCRIPTS) for source in range(sources)]
        axis.set_yticks(range(sources), names, fontsize=9)
        axis.tick_params(length=0)
        axis.grid(False)
        axis.set_title(name, fontsize=11, loc="left")
        axis.set_xlabel("reader", fontsize=9)
    axes[0].set_ylabel("source", fontsize=9)
    return figure


def _short(count: int) -> str:
    """Write a count in three digits: 335040 as 335k."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _arrow(axis: Axes, source: int, target: int, bend: float, look: dict) -> None:
    # In no search for limits or layout, which would take most of the time: both are given.
    axis.add_artist(
        FancyArrowPatch(
            (source, 0),
            (target, 0),
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=10,
            shrinkA=9,
            shrinkB=9,
            in_layout=False,
            **look,
        )
    )
