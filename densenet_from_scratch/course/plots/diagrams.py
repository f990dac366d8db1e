"""Drawings of networks: connections, stages, connection strengths."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from densenet_from_scratch.arguments import check_choice, check_count, check_mapping
from densenet_from_scratch.course.plots.base import COLOURS, PALETTE, SUBSCRIPTS, new_axes


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


def stage_diagram(stages: Sequence[Stage]) -> Figure:
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
        ValueError: there is no matrix, not a reader and an axis for each, or ``highlight`` is no
            column of each.
    """
    check_mapping("matrices", matrices, "strengths")
    fewest = min(matrix.shape[1] for matrix in matrices.values())
    if highlight is not None and highlight not in range(1, fewest + 1):
        raise ValueError(f"highlight must be a column from 1 to {fewest}, got {highlight!r}")
    if axes is not None and len(axes) != len(matrices):
        raise ValueError(f"axes must be one for each of {len(matrices)} matrices, got {len(axes)}")
    if len(readers) != len(matrices):
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
        look = {"fill": False, "linewidth": 2, "edgecolor": PALETTE[1], "clip_on": False}
        axis.add_patch(Rectangle((framed - 0.5, -0.5), 1, sources, **look, zorder=3))
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
