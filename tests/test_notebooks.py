"""The chapters keep their conventions, and what they build is what the package holds.

That a chapter's committed outputs are what its code prints is nbval's part: it collects the
notebooks themselves. nbval passes over a cell that was never executed, so that is tested here.
"""

import re

import nbformat
import pytest
import torch
from helpers import CHAPTERS, SOLUTIONS, cells, classes_built_in
from torch import nn

import densenet_from_scratch
from densenet_from_scratch import dense, efficient, model, osa, plain, residual, transition

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
executed = pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS, ids=lambda path: path.stem)


def test_the_chapters_are_numbered_without_a_gap():
    assert [path.name[:2] for path in CHAPTERS] == [f"{n:02}" for n in range(len(CHAPTERS))]
    assert len(CHAPTERS) >= 4


@executed
def test_every_cell_was_executed_in_order_without_error(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert any(cell.outputs for cell in code)


@executed
def test_the_notebook_is_valid_and_cells_have_ids(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"


@executed
def test_nothing_that_needs_a_live_kernel_is_committed(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
            assert output.get("name") != "stderr", output.text


@executed
def test_some_outputs_are_compared(path):
    """A notebook whose every output is ignored would prove nothing."""
    compared = [
        cell
        for cell in cells(path, "code")
        if cell.outputs and "nbval-ignore-output" not in cell.metadata.get("tags", [])
    ]
    assert len(compared) >= 3


@chapters
def test_code_cells_are_short(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 25, cell.source


@chapters
def test_paragraphs_are_short(path):
    for cell in cells(path, "markdown"):
        text = re.sub(r"```.*?```|\$\$.*?\$\$|<details>|</details>", "", cell.source, flags=re.S)
        for paragraph in re.split(r"\n\s*\n", text):
            lines = [
                line for line in paragraph.splitlines() if not re.match(r"\s*([-*|>]|\d+\.)", line)
            ]
            assert sum(len(line) for line in lines) <= 4 * 110, paragraph


@chapters
def test_the_chapter_has_its_parts(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    number = int(path.name[:2])
    assert text.startswith(f"# {number}. ")
    for part in ("You will be able to", "**Time**", "**You need**"):
        assert part in text.split("\n## ")[0], part
    for part in ("Recap", "Check yourself", "Next", "Sources"):
        assert re.search(rf"^## {part}$", text, flags=re.M), part
    questions = text.split("\n## Check yourself\n")[1].split("\n## ")[0]
    assert questions.count("<details>") == questions.count("</details>") == 3
    assert re.search(r"[Pp]redict", text)


@chapters
def test_the_chapter_has_a_widget_and_a_figure(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert "widgets.explore(" in code
    pictures = [
        o for cell in cells(path, "code") for o in cell.outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.metadata["image/png"]["alt"].strip()


@chapters
def test_links_to_files_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            if not target.startswith(("http://", "https://", "#")):
                assert (path.parent / target.split("#")[0]).exists(), target


# Chapter, the class in its cells, how to make one, the class in the package, an input.
BUILT = [
    ("01", "PlainLayer", lambda c: c(5), plain.PlainLayer, (2, 5, 6, 6)),
    ("01", "PlainNet", lambda c: c(3, 4), plain.PlainNet, (2, 1, 8, 8)),
    ("02", "ResidualLayer", lambda c: c(5), residual.ResidualLayer, (2, 5, 6, 6)),
    ("02", "ResidualNet", lambda c: c(3, 4), residual.ResidualNet, (2, 1, 8, 8)),
    ("03", "DenseLayer", lambda c: c(5, 3), dense.DenseLayer, (2, 5, 6, 6)),
    (
        "03",
        "DenseBlock",
        lambda c: c(3, 4, 2, bottleneck=False) if c is dense.DenseBlock else c(3, 4, 2),
        dense.DenseBlock,
        (2, 4, 6, 6),
    ),
    ("05", "BottleneckLayer", lambda c: c(5, 3), dense.BottleneckLayer, (2, 5, 6, 6)),
    ("06", "Transition", lambda c: c(6, 0.4), transition.Transition, (2, 6, 6, 5)),
    (
        "07",
        "DenseNet",
        lambda c: c(3, (2, 1, 2), num_init_features=5),
        model.DenseNet,
        (2, 3, 8, 8),
    ),
    (
        "07",
        "DenseNet",
        lambda c: c(3, (2, 1, 2, 1), num_init_features=6, small_inputs=False, num_classes=4),
        model.DenseNet,
        (3, 3, 40, 40),
    ),
    ("10", "CheckpointedBlock", lambda c: c(3, 4, 2), efficient.CheckpointedBlock, (2, 4, 6, 5)),
    ("10", "SelectiveBlock", lambda c: c(3, 4, 2), efficient.SelectiveBlock, (2, 4, 6, 5)),
    ("10", "SharedBlock", lambda c: c(3, 4, 2), efficient.RecomputingSharedBlock, (2, 4, 6, 5)),
    ("11", "OSAModule", lambda c: c(3, 4, 6, 2), osa.OSAModule, (2, 3, 6, 5)),
]


@pytest.mark.parametrize(("chapter", "name", "make", "finished", "shape"), BUILT)
def test_what_the_chapter_builds_is_what_the_package_holds(chapter, name, make, finished, shape):
    built = classes_built_in(chapter)[name]
    assert built.__module__ == "chapter", f"chapter {chapter} imports {name} and does not build it"
    torch.manual_seed(0)
    theirs, ours = make(built).double(), make(finished).double()
    theirs.load_state_dict(ours.state_dict())
    assert_same_behaviour(theirs, ours, torch.randn(shape, dtype=torch.float64))


def assert_same_behaviour(first: nn.Module, second: nn.Module, x: torch.Tensor) -> None:
    """Equal outputs, gradients and running statistics, in training and in evaluation."""
    for training in (True, False):
        results = []
        for module in (first.train(training), second.train(training)):
            module.zero_grad()
            inputs = x.clone().requires_grad_()
            output = module(inputs)
            output.square().sum().backward()
            gradients = {key: p.grad for key, p in module.named_parameters()}
            results.append(
                {
                    "output": output,
                    "input": inputs.grad,
                    **gradients,
                    **dict(module.named_buffers()),
                }
            )
        assert results[0].keys() == results[1].keys()
        for key in results[0]:
            torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-12, atol=1e-12)


def test_the_package_exports_what_the_chapters_finish():
    for _, name, _, finished, _ in BUILT:
        if finished.__module__.startswith(efficient.__name__):
            continue  # an option of DenseNet chooses these
        assert getattr(densenet_from_scratch, name) is finished
