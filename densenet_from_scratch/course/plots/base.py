"""Colours, markers, empty figures, and how a figure gets into a notebook."""

import io
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
        ValueError: ``figure`` is none, or ``caption`` is empty.
    """
    if not isinstance(figure, Figure):
        raise ValueError(f"figure must be a figure of matplotlib, got {figure!r}")
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"caption must say what the figure shows, got {caption!r}")
    from IPython.display import Markdown, display  # only notebooks have it

    bundle = {"image/png": to_png(figure), "text/plain": caption}
    display(bundle, raw=True, metadata={"image/png": {"alt": caption}})
    display(Markdown(f"*{caption}*"))
