"""The figures of the chapters. They draw what they are given and compute nothing.

Every function returns a matplotlib figure; :func:`show` puts it in a notebook with a text
alternative. Figures are made without pyplot, so nothing stays open behind the reader's back.
"""

from densenet_from_scratch.course.plots.base import (
    COLOURS,
    MARKERS,
    PALETTE,
    STYLE,
    new_axes,
    new_figure,
    show,
    to_png,
)
from densenet_from_scratch.course.plots.curves import (
    by_depth,
    by_seed,
    draw_image,
    gradient_profile,
    image_grid,
    training_curves,
)
from densenet_from_scratch.course.plots.diagrams import (
    Stage,
    connection_heatmap,
    connectivity,
    stage_diagram,
)

__all__ = [
    "COLOURS",
    "MARKERS",
    "PALETTE",
    "STYLE",
    "Stage",
    "by_depth",
    "by_seed",
    "connection_heatmap",
    "connectivity",
    "draw_image",
    "gradient_profile",
    "image_grid",
    "new_axes",
    "new_figure",
    "show",
    "stage_diagram",
    "to_png",
    "training_curves",
]
