"""What chapters 9 to 11 say is what their cells compute, and what they print carries it."""

import math
import re

import nbformat
import pytest
import torch
from helpers import CHAPTERS, cells, classes_built_in, notebook
from scipy.stats import spearmanr

from densenet_from_scratch import DenseNet, densenet121, measure

LATE = [path for path in CHAPTERS if path.name[:2] in ("09", "10", "11")]


def chapter(number: str) -> nbformat.NotebookNode:
    """One of the late chapters."""
    [path] = [path for path in LATE if path.name.startswith(number)]
    return notebook(path)


def printed(number: str, beginning: str) -> list[list[float]]:
    """The numbers of each printed line of a chapter that begins so."""
    text = "\n".join(
        output.text
        for cell in chapter(number).cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    lines = [line.strip() for line in text.splitlines()]
    found = [line.removeprefix(beginning) for line in lines if line.startswith(beginning)]
    assert found, f"chapter {number} prints no line that begins with {beginning!r}"
    return [
        [float(n.replace(",", "")) for n in re.findall(r"[+-]?\d[\d,]*\.?\d*", f)] for f in found
    ]


@pytest.mark.parametrize("path", LATE, ids=lambda path: path.stem)
def test_no_cell_reaches_for_a_private_name(path):
    for cell in cells(path, "code"):
        assert not re.findall(r"(?<!self)\._[a-z]\w*", cell.source), cell.source


# Chapter 9


def test_the_third_observation_is_about_layers_and_not_about_what_follows_the_block():
    observations = classes_built_in("09")["observations"]
    torch.manual_seed(0)
    network = DenseNet(4, (5, 5, 5), 1, num_init_features=8, bottleneck=False)
    before = observations(network)
    with torch.no_grad():
        width = network.blocks[1].layers[0].norm1.num_features
        network.transitions[1].conv.weight[:, :width] *= 100
    after = observations(network)
    for name in before:
        assert (before[name] == after[name]) == (not name.startswith("2")), name


def test_the_rank_correlation_knows_ties():
    correlation = classes_built_in("09")["rank_correlation"]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 5, (2, 40), generator=generator).double().tolist()
    assert math.isclose(
        correlation(first, second), spearmanr(first, second).statistic, abs_tol=1e-6
    )


def test_a_long_connection_skips_three_layers_in_text_and_code():
    notebook = chapter("09")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    # Layer r + 1 reads x_s, made by layer s: it skips the r - s layers between them.
    assert "if r - s >= 3]" in code
    assert "**long** connection skips at least three layers" in text


def test_losing_the_transition_harms_most_as_the_text_says():
    for line in printed("09", "basic block 3, all of x_0") + printed(
        "09", "BC    block 3, all of x_0"
    ):
        assert min(line[-3:]) > 1.5


# Chapter 10


def test_selective_checkpointing_repeats_no_convolution_as_printed():
    plain = printed("10", "DenseBlock")[0][0]
    [line] = [line for line in printed("10", "SelectiveBlock") if line[0] > 1e6]
    assert line[0] == plain


def test_step_times_are_as_the_text_says():
    rows = {
        way: [line[-1] for line in printed("10", way) if len(line) == 3][-1]
        for way in ("checkpoint", "selective", "shared ", "shared-recompute")
    }
    assert rows["selective"] == max(rows.values())
    assert max(rows["shared "], rows["shared-recompute"]) < rows["checkpoint"]


# Chapter 11


def test_ratios_of_the_convolutions_are_counted_rightly():
    namespace = classes_built_in("11")
    namespace["shape"] = (1, 3, 64, 64)
    with torch.device("meta"):
        network = densenet121()
    ratios, over = namespace["against_equal"](network, 1)
    expected = [layer.conv1 for block in network.blocks for layer in block.layers]
    expected += [transition.conv for transition in network.transitions]
    pairs = [(conv.in_channels, conv.out_channels) for conv in expected]
    assert ratios == sorted(max(a / b, b / a) for a, b in pairs)
    assert (ratios.count(1), sum(ratio <= 2 for ratio in ratios)) == (2, 15)
    assert over > 1
    [line] = [line for line in printed("11", "DenseNet-121   1×1")]
    assert line[:4] == [61, 2, 15, 7.8]


def test_latencies_are_as_the_text_says():
    [[macs, *ratios]] = printed("11", "DenseNet-121 against ResNet-50:")
    assert macs == 0.69 and 0.6 < min(ratios) <= max(ratios) < 1.3
    [[macs, *ratios]] = printed("11", "VoVNet-39 against DenseNet-121:")
    assert macs == 2.5 and min(ratios) > 1.15  # longer, in every row


def test_the_frozen_copy_is_the_fast_one_as_printed():
    for line in printed("11", "batch 1, contiguous") + printed("11", "batch 1, channels last"):
        ours, frozen = line[-2:]
        assert frozen < 0.97 * ours
        assert 0.8 < ours < 1.25  # the same steps as torchvision's


def test_the_dense_block_is_the_slower_of_equal_work_as_printed():
    [[as_written, both]] = printed("11", "dense against OSA:")
    assert as_written > 1.1 and both > 1.05


def test_the_heatmap_compares_a_transition_with_an_aggregation():
    code = "\n".join(cell.source for cell in chapter("11").cells if cell.cell_type == "code")
    assert "measure.connection_strengths(network)[1]" in code
    network = DenseNet(4, (5, 5, 5), 1, num_init_features=8, bottleneck=False)
    last = measure.connection_strengths(network)[1][:, -1]
    width = network.blocks[1].layers[0].norm1.num_features
    exit_ = network.transitions[1].conv.weight.detach()
    torch.testing.assert_close(last[0], exit_[:, :width].abs().mean())
