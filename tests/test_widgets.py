"""Interactive figures: they follow their controls, and their text follows too."""

import base64
import re

import ipywidgets
import pytest

from densenet_from_scratch.course import plots, widgets


@pytest.fixture
def explored():
    """An interactive figure with a slider and buttons, and the calls of its draw function."""
    calls = []

    def draw(layers: int, kind: str):
        calls.append((layers, kind))
        return plots.connectivity(kind, layers), f'{layers} layers, <{kind} & "so on">'

    layers = widgets.int_slider("Layers L", 2, low=1, high=6)
    kind = widgets.choice("Kind", ("plain", "dense"))
    return widgets.explore(draw, layers=layers, kind=kind), calls


def picture(box: ipywidgets.VBox) -> str:
    return box.children[-1].value


def png(box: ipywidgets.VBox) -> bytes:
    [encoded] = re.findall(r'src="data:image/png;base64,([^"]+)"', picture(box))
    return base64.b64decode(encoded)


def test_it_draws_at_once_and_again_at_every_change(explored):
    box, calls = explored
    layers, kind, _ = box.children
    assert calls == [(2, "plain")]
    first = png(box)
    assert first.startswith(b"\x89PNG")
    layers.value = 4
    kind.value = "dense"
    assert calls == [(2, "plain"), (4, "plain"), (4, "dense")]
    assert png(box) != first
    kind.value = "dense"
    assert len(calls) == 3, "no change, nothing to draw"


def test_its_sentence_is_the_alternative_text_and_the_caption(explored):
    box, _ = explored
    box.children[0].value = 5
    sentence = "5 layers, &lt;plain &amp; &quot;so on&quot;&gt;"
    assert f'alt="{sentence}"' in picture(box)
    assert f"<figcaption>{sentence}</figcaption>" in picture(box)


def test_a_table_may_stand_below():
    def draw(layers: int):
        rows = [["part", "maps"], ["stem <3×3>", "16"], ["block", str(16 + 4 * layers)]]
        return plots.connectivity("dense", layers), "A block.", rows

    box = widgets.explore(draw, layers=widgets.int_slider("Layers L", 2, low=1, high=6))
    box.children[0].value = 3
    table = re.sub(' style="[^"]*"', "", picture(box).split("</figure>")[1])
    assert table == (
        '<table><tr><th scope="col">part</th><th scope="col">maps</th></tr>'
        '<tr><th scope="row">stem &lt;3×3&gt;</th><td>16</td></tr>'
        '<tr><th scope="row">block</th><td>28</td></tr></table>'
    )


def test_controls_are_labelled(explored):
    box, _ = explored
    layers, kind, _ = box.children
    assert (layers.description, kind.description) == ("Layers L", "Kind")
    for control in (layers, kind):
        assert control.style.description_width == "initial"  # a long label is not cut off


def test_slider_and_buttons():
    slider = widgets.int_slider("k", 4, low=2, high=12, step=2)
    assert (slider.value, slider.min, slider.max, slider.step) == (4, 2, 12, 2)
    assert widgets.choice("Kind", ("a", "b")).value == "a"
    assert widgets.choice("Kind", ("a", "b"), "b").value == "b"


def test_an_error_in_the_first_drawing_is_seen():
    with pytest.raises(ZeroDivisionError):
        widgets.explore(lambda k: 1 / 0, k=widgets.int_slider("k", 1, low=1, high=2))


@pytest.mark.parametrize("drawn", [plots.new_figure(), (plots.new_figure(), " "), (None, "It.")])
def test_a_drawing_without_figure_or_sentence(drawn):
    slider = widgets.int_slider("k", 1, low=1, high=2)
    with pytest.raises(ValueError, match=r"^draw must return a figure and a sentence, got "):
        widgets.explore(lambda k: drawn, k=slider)


def test_bad_input():
    with pytest.raises(ValueError, match="L must be a control, such as int_slider makes, got 3"):
        widgets.explore(lambda L: None, L=3)
    with pytest.raises(ValueError, match="value must be one of 'a', 'b', got 'c'"):
        widgets.choice("k", ("a", "b"), "c")
    with pytest.raises(ValueError, match=r"options must hold at least one choice, got \(\)"):
        widgets.choice("k", ())
    with pytest.raises(ValueError, match="controls must name at least one control, got none"):
        widgets.explore(lambda: None)
    with pytest.raises(ValueError, match="k must have a description, which is its label, got ''"):
        widgets.explore(lambda k: None, k=ipywidgets.IntSlider())
