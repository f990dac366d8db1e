"""Interactive figures: labelled controls above a picture that follows them.

Each stands beside a static figure, so that a page teaches without a running kernel too.
"""

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from densenet_from_scratch.arguments import check_choice
from densenet_from_scratch.course.plots import to_png


def explore(
    draw: Callable[..., tuple[Figure, str] | tuple[Figure, str, Sequence[Sequence[str]]]],
    **controls: ipywidgets.ValueWidget,
) -> ipywidgets.VBox:
    """Return controls and a picture that is drawn again whenever one of them moves.

    Args:
        draw: called with the controls' values by name; returns a figure and one sentence that says
            what it shows. The sentence stands under the picture and is its text alternative. It may
            also return a table to stand below: rows of text, of which the first is the header and
            the first column names the row.
        controls: ipywidgets with a ``value`` and a ``description``, which is the label that the
            reader sees.

    Returns:
        A box whose children are the controls and the picture.

    Raises:
        ValueError: there is no control, one is no control or has no label, or ``draw`` returns
            something else.
    """
    if not controls:
        raise ValueError("controls must name at least one control, got none")
    for name, control in controls.items():
        if not isinstance(control, ipywidgets.ValueWidget):
            raise ValueError(f"{name} must be a control, such as int_slider makes, got {control!r}")
        if not control.description:
            raise ValueError(f"{name} must have a description, which is its label, got ''")
        control.style.description_width = "initial"
    picture = ipywidgets.HTML()

    def redraw(_change: Any = None) -> None:
        drawn = draw(**{name: c.value for name, c in controls.items()})
        match drawn:
            case (Figure() as figure, str(sentence), *tables) if sentence.strip():
                pass
            case _:
                raise ValueError(f"draw must return a figure and a sentence, got {drawn!r}")
        encoded = base64.b64encode(to_png(figure)).decode()
        sentence = html.escape(sentence)
        picture.value = (
            f'<figure style="margin: 0"><img alt="{sentence}" '
            f'src="data:image/png;base64,{encoded}"><figcaption>{sentence}</figcaption></figure>'
            + "".join(map(_html_table, tables))
        )

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), picture])


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose first row and first column are headers, and the rest numbers."""

    def cell(row: int, column: int, text: str) -> str:
        tag = "td" if row and column else "th"
        scope = "" if row and column else f' scope="{"row" if row else "col"}"'
        style = f"text-align: {'right' if column else 'left'}; padding: 0 0.8em 0 0"
        return f'<{tag}{scope} style="{style}">{html.escape(text)}</{tag}>'

    lines = ["".join(cell(r, c, text) for c, text in enumerate(row)) for r, row in enumerate(rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def int_slider(label: str, value: int, low: int, high: int, step: int = 1) -> ipywidgets.IntSlider:
    """Return a labelled slider over whole numbers, which the arrow keys move too."""
    width = f"{18 + len(label) // 2}em"  # so that a long label leaves the track its length
    return ipywidgets.IntSlider(
        value, min=low, max=high, step=step, description=label, layout={"width": width}
    )


def choice(
    label: str, options: tuple[str, ...], value: str | None = None
) -> ipywidgets.ToggleButtons:
    """Return labelled buttons of which one is pressed, the first unless ``value`` names another.

    Raises:
        ValueError: there is no option, or ``value`` is none of them.
    """
    if not options:
        raise ValueError(f"options must hold at least one choice, got {options!r}")
    pressed = options[0] if value is None else check_choice("value", value, options)
    return ipywidgets.ToggleButtons(options=options, value=pressed, description=label)
