"""Figures: what is drawn, counted in matplotlib's own objects, and what is refused."""

from itertools import pairwise

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch.utils.data import TensorDataset

from densenet_from_scratch import load_data
from densenet_from_scratch.course import plots
from densenet_from_scratch.data import Data
from densenet_from_scratch.train import History

PNG = b"\x89PNG\r\n\x1a\n"


def history(*train_loss: float) -> History:
    """A run whose other quantities follow from its training loss."""
    losses, accuracies = list(train_loss), [1 - loss / 3 for loss in train_loss]
    return History(losses, accuracies, [2 * v for v in losses], accuracies, [1.0] * len(losses))


def texts(axis) -> list[str]:
    return [text.get_text().strip() for text in axis.texts]


def colours_of(lines) -> list[str]:
    return [to_hex(line.get_color()).upper() for line in lines]


def test_new_figure_and_axes():
    assert isinstance(plots.new_figure(3, 2), Figure)
    figure, axes = plots.new_axes(4, 3, rows=2, columns=3, sharey=True)
    assert figure.get_size_inches().tolist() == [4, 3]
    assert axes == figure.axes and len(axes) == 6
    axes[0].set_ylim(0, 7)
    assert axes[2].get_ylim() == (0, 7)


def test_colours_and_markers_tell_the_kinds_apart():
    assert plots.COLOURS.keys() == plots.MARKERS.keys() == {"plain", "residual", "dense"}
    assert len(set(plots.COLOURS.values())) == len(set(plots.MARKERS.values())) == 3


def test_show_displays_a_picture_its_alternative_text_and_a_caption(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda *a, **options: shown.append((a[0], options))
    )
    figure, _ = plots.new_axes()
    plots.show(figure, "What it says.")
    (bundle, options), (caption, _) = shown
    assert bundle["image/png"].startswith(PNG)
    assert bundle["text/plain"] == "What it says."
    assert options == {"raw": True, "metadata": {"image/png": {"alt": "What it says."}}}
    assert caption.data == "*What it says.*"
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="caption must say what the figure shows, got "):
            plots.show(figure, empty)


def test_image_grid_has_a_column_a_class():
    data = load_data()
    figure = plots.image_grid(data, per_class=2)
    assert len(figure.axes) == 20
    assert [axis.get_title() for axis in figure.axes[:10]] == list("0123456789")
    first_three = next(image for image, label in data.train if label == 3)
    drawn = torch.as_tensor(figure.axes[3].images[0].get_array())
    span = first_three.max() - first_three.min()
    torch.testing.assert_close(drawn, (first_three[0] - first_three.min()) / span)


def test_image_grid_of_colour_images():
    images = TensorDataset(torch.rand(4, 3, 5, 6), torch.arange(4) % 2)
    figure = plots.image_grid(Data("mine", images, images, ("cat", "dog"), (3, 5, 6)))
    assert [axis.images[0].get_array().shape for axis in figure.axes] == [(5, 6, 3)] * 2


def test_an_image_of_one_grey_is_drawn():
    _, [axis] = plots.new_axes()
    plots.draw_image(axis, torch.full((1, 4, 4), 3.0))
    assert not axis.images[0].get_array().any()


@pytest.mark.parametrize(
    "quantity, label, last",
    [
        ("train_loss", "training loss (nats)", 0.25),
        ("eval_loss", "test loss (nats)", 0.5),
        ("train_accuracy", "training accuracy", 1 - 0.25 / 3),
        ("eval_accuracy", "test accuracy", 1 - 0.25 / 3),
    ],
)
def test_training_curves_draw_a_line_a_run(quantity, label, last):
    runs = {"one": history(2, 1, 0.25), "seeds": [history(2, 0.5), history(1.5, 0.5)]}
    [axis] = plots.training_curves(runs, quantity).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", label)
    assert list(axis.lines[0].get_xdata()) == [1, 2, 3]
    assert axis.lines[0].get_ydata()[-1] == last
    one, *seeds = colours_of(axis.lines)
    assert len(seeds) == 2 and len({one, *seeds}) == 2
    assert len({line.get_linestyle() for line in axis.lines}) == 2
    assert sorted(texts(axis)) == ["one", "seeds"]


def test_names_of_curves_that_end_together_do_not_overlap():
    figure = plots.training_curves({name: history(2, 1) for name in ("a", "b", "c")})
    plots.to_png(figure)
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_by_depth_draws_seeds_as_points_and_their_mean_as_a_line():
    results = {"plain": {20: [2.0, 4.0], 6: [1.0, 1.0]}, "dense": {6: [0.5]}}
    [axis] = plots.by_depth(results, "loss (nats)", log=True).axes
    lines = [line for line in axis.lines if line.get_linestyle() == "-"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ([6, 20], [1.0, 3.0]),
        ([6], [0.5]),
    ]
    points = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == 5
    assert {line.get_marker() for line in points} == {
        plots.MARKERS["plain"],
        plots.MARKERS["dense"],
    }
    assert texts(axis) == ["plain", "dense"]
    assert axis.get_xticks().tolist() == [6, 20]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("layers", "loss (nats)")
    assert axis.get_yscale() == "log"


def test_by_seed_draws_a_row_a_network():
    results = {"pool": [0.9, 0.8, 1.0], "stride": [0.5]}
    [axis] = plots.by_seed(results, "test accuracy").axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == list(results.values())
    bars = [line for line in axis.lines if line.get_marker() == "None"]
    assert [line.get_xdata()[0] for line in bars] == pytest.approx([0.9, 0.5])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["pool", "stride"]
    low, high = axis.get_ylim()
    assert low > high, "the first row is on top"
    assert axis.get_xlabel() == "test accuracy"


STAGES = [
    plots.Stage("stem", 0, 3, 16, 8, 432),
    plots.Stage("block 1", 4, 16, 32, 8, 12_345),
    plots.Stage("head", 0, 32, 10, 1, 1_234_567),
]


def test_stage_diagram_draws_every_stage_to_scale():
    sizes, channels = plots.stage_diagram(STAGES).axes
    for axis, heights in ((sizes, [8, 8, 1]), (channels, [16, 32, 32])):
        drawn = [patch.get_path().vertices[:, 1].max() for patch in axis.patches]
        assert drawn == heights
    widths = [patch.get_path().vertices[:, 0] for patch in sizes.patches]
    stem, block, head = (width.max() - width.min() for width in widths)
    assert block == pytest.approx(4 * stem) and stem == head
    assert texts(sizes) == ["8×8\n4 layers"]
    assert texts(channels) == ["16", "32"]
    names = [label.get_text() for label in channels.get_xticklabels()]
    assert names == ["432\nstem", "12.3k\nblock 1", "1.23M\nhead"]


def test_gradient_profile_draws_a_line_a_kind():
    [axis] = plots.gradient_profile({"plain": [1.0, 0.1, 0.01], "residual": [1.0, 0.9]}).axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[1.0, 0.1, 0.01], [1.0, 0.9]]
    assert [line.get_marker() for line in axis.lines] == [
        plots.MARKERS["plain"],
        plots.MARKERS["residual"],
    ]
    assert texts(axis) == ["plain", "residual"]
    assert axis.get_yscale() == "log"
    assert axis.get_ylabel() == "gradient norm of its weights"


def arrows(axis) -> list[FancyArrowPatch]:
    return [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_connectivity_draws_every_connection(num_layers):
    expected = {
        "plain": num_layers,
        "residual": 2 * num_layers,  # through the layer, and around it
        "dense": num_layers * (num_layers + 1) // 2,
    }
    for kind, count in expected.items():
        [axis] = plots.connectivity(kind, num_layers).axes
        assert len(arrows(axis)) == count
        assert texts(axis) == ["x₀", "x₁", "x₂", "x₃", "x₄", "x₅"][: num_layers + 1]
        dashed = [arrow for arrow in arrows(axis) if arrow.get_linestyle() not in ("-", "solid")]
        assert len(dashed) == (num_layers if kind == "residual" else 0)


@pytest.mark.parametrize("kind, strong", [("plain", 1), ("residual", 2), ("dense", 3)])
def test_connectivity_highlights_what_one_layer_reads(kind, strong):
    [axis] = plots.connectivity(kind, 5, highlight=3).axes
    assert sum(arrow.get_alpha() > 0.5 for arrow in arrows(axis)) == strong


def test_connectivity_draws_into_given_axes():
    figure, axes = plots.new_axes(columns=2)
    assert plots.connectivity("dense", 3, axis=axes[1]) is figure
    assert len(arrows(axes[1])) == 6 and not axes[0].patches


STRENGTHS = torch.tensor([[0.2, 0.1, 0.4], [torch.nan, 0.3, 0.1], [torch.nan, torch.nan, 0.2]])


def test_heatmap_writes_percent_of_each_readers_strongest():
    figure = plots.connection_heatmap({"block 1": STRENGTHS, "block 2": STRENGTHS}, ("T", "C"))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["block 1", "block 2"]
    for axis, last in zip(figure.axes, "TC", strict=True):
        assert texts(axis) == ["100", "33", "100", "100", "25", "50"]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", last]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["x₀", "x₁", "x₂"]
        [frame] = axis.patches
        assert frame.get_x() == 1.5, "the last reader is framed"


def test_heatmap_frames_another_reader_and_draws_into_given_axes():
    figure, axes = plots.new_axes(columns=2)
    drawn = plots.connection_heatmap({"": STRENGTHS}, ("T",), highlight=2, axes=axes[1:])
    assert drawn is figure and axes[1].patches[0].get_x() == 0.5 and not axes[0].texts


@pytest.mark.parametrize(
    "draw, message",
    [
        (
            lambda: plots.connection_heatmap({"block": STRENGTHS}, ()),
            r"readers must name one of each of 1 matrices, got \[\]",
        ),
        (
            lambda: plots.training_curves({}),
            "histories must hold .* by name, got none",
        ),
        (
            lambda: plots.training_curves({"stopped": [history(1), History()]}),
            r"histories\['stopped'\] must have finished an epoch, got 0 epochs",
        ),
        (lambda: plots.training_curves({"a": []}), r"histories\['a'\] must have finished"),
        (
            lambda: plots.training_curves({"a": history(1)}, "loss"),
            "quantity must be one of 'train_loss', .*, got 'loss'",
        ),
        (
            lambda: plots.by_depth({"sparse": {6: [1.0]}}, "loss"),
            "kind must be one of 'plain', 'residual', 'dense', got 'sparse'",
        ),
        (lambda: plots.stage_diagram([]), "stages must hold at least one stage, got "),
        (
            lambda: plots.stage_diagram([STAGES[0]._replace(size=0)]),
            r"stages\[0\]\.size must be an integer of at least 1, got 0",
        ),
        (
            lambda: plots.gradient_profile({"sparse": [1.0]}),
            "kind must be one of 'plain', 'residual', 'dense', got 'sparse'",
        ),
        (
            lambda: plots.by_seed({"pool": [0.9], "stride": []}, "accuracy"),
            r"results\['stride'\] must hold at least one result, got \[\]",
        ),
        (lambda: plots.by_seed({}, "accuracy"), "results must hold results by name, got none"),
        (lambda: plots.by_seed([0.9], "accuracy"), "results must hold results by name, got list"),
        (lambda: plots.by_depth({}, "loss"), "results must hold results by name, got none"),
        (
            lambda: plots.by_depth({"plain": {6: []}}, "loss"),
            r"results\['plain'\]\[6\] must hold at least one result, got \[\]",
        ),
        (
            lambda: plots.by_depth({"plain": {}}, "loss"),
            r"results\['plain'\] must hold at least one result, got \{\}",
        ),
        (lambda: plots.gradient_profile({}), "norms must hold results by name, got none"),
        (
            lambda: plots.gradient_profile({"plain": []}),
            r"norms\['plain'\] must hold at least one result, got \[\]",
        ),
        (
            lambda: plots.training_curves(history(1)),
            "histories must hold at least one run by name, got History",
        ),
        (
            lambda: plots.training_curves({"a": [0.5]}),
            r"histories\['a'\] must be a History or several, got \[0\.5\]",
        ),
        (
            lambda: plots.training_curves({"a": 0.5}),
            r"histories\['a'\] must be a History or several, got 0\.5",
        ),
        (
            lambda: plots.connection_heatmap([STRENGTHS], ("T",)),
            "matrices must hold strengths by name, got list",
        ),
        (
            lambda: plots.connection_heatmap({"block": STRENGTHS}, ("T",), highlight=4),
            "highlight must be a column from 1 to 3, got 4",
        ),
        (
            lambda: plots.connection_heatmap({"block": STRENGTHS}, ("T",), axes=[]),
            "axes must be one for each of 1 matrices, got 0",
        ),
        (lambda: plots.image_grid(None), "data must be what load_data returns, got None"),
        (lambda: plots.show(None, "c"), "figure must be a figure of matplotlib, got None"),
        (lambda: plots.show(plots.new_figure(), None), "caption must say .*, got None"),
    ],
)
def test_bad_input(draw, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        draw()
    assert "\n" not in str(caught.value)
