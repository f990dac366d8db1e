"""The course in a real JupyterLab in a real browser: what a reader sees when they click.

Needs Chromium or Chrome. Without one these tests are skipped, and the run's last lines say so;
where CI is set they fail instead.
"""

import ast
import json
import os
import shutil
import subprocess
import symtable
import sys
import time
import tomllib
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
from helpers import CHAPTERS, ROOT, free_ports
from IPython.core.inputtransformer2 import TransformerManager
from playwright.sync_api import Page, expect

TOKEN = "a-token-for-tests"
PATIENCE = 600_000  # milliseconds; nothing here takes a tenth of it on an idle machine of two cores
IDLE = '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status="idle"]'

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab, started as the README starts it, in a copy of the course; its address."""
    course = tmp_path_factory.mktemp("course")
    for folder in ("chapters", "exercises", "solutions"):
        shutil.copytree(ROOT / folder, course / folder)
    [port] = free_ports(1)
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    log = (course / "lab.log").open("w")
    settings = {
        "JUPYTER_CONFIG_DIR": str(course / ".config"),
        "JUPYTERLAB_SETTINGS_DIR": str(course),
    }
    server = subprocess.Popen(
        command, cwd=course, stdout=log, stderr=log, env={**os.environ, **settings}
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            ask(address, "status")
            break
        except OSError:
            alive = server.poll() is None and time.monotonic() < deadline
            assert alive, (course / "lab.log").read_text()
            time.sleep(0.25)
    yield address, course
    server.terminate()
    server.wait(timeout=120)


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    # Now and then JupyterLab asks something, such as which kernel to take: what it proposes.
    dialog = page.locator(".jp-Dialog .jp-mod-accept")
    # Where one is answered and the next one stands there at once, that is answered, too.
    page.add_locator_handler(dialog, lambda: dialog.last.click(), no_wait_after=True)
    yield page
    context.close()


@pytest.fixture(scope="module")
def kernel(lab) -> dict:
    """One kernel for all widgets, whose names are cleared between them: it imports PyTorch once."""
    return ask(lab[0], "kernels", {})


def ask(address: str, what: str, send: dict | None = None):
    """Ask JupyterLab's server, or tell it something; return its answer."""
    url = f"{address}/api/{what}?token={TOKEN}"
    data = None if send is None else json.dumps(send).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def open_notebook(page: Page, address: str, path: str) -> None:
    page.goto(f"{address}/lab/tree/{path}?token={TOKEN}&reset")
    page.wait_for_selector(IDLE, timeout=PATIENCE)


def seconds_at_rest(address: str, path: str) -> float:
    """For how long the kernel of a notebook has had nothing to do; 0 while it works."""
    [kernel] = [one["kernel"] for one in ask(address, "sessions") if one["path"] == path]
    if kernel["execution_state"] != "idle":
        return 0
    last = datetime.fromisoformat(kernel["last_activity"])
    return (datetime.now(UTC) - last).total_seconds()


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_timeout(1000)
    page.wait_for_selector(IDLE, timeout=PATIENCE)


def screenshot(page: Page, name: str) -> None:
    """Keep a picture of the page where SCREENSHOTS says, for a person to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_the_start_command_opens_the_first_chapter(lab, page):
    address, _ = lab
    page.goto(f"{address}/?token={TOKEN}")
    heading = page.locator(".jp-NotebookPanel h1").first
    expect(heading).to_contain_text("Start here", timeout=PATIENCE)
    expect(page.locator(".jp-NotebookPanel table").first).to_contain_text("Dense connections")
    page.wait_for_selector(IDLE, timeout=PATIENCE)
    screenshot(page, "landing")


SHORT_TRAINING = """\
%reset -f
import dataclasses
from torch.utils.data import Subset
from densenet_from_scratch import train as module

full = module.__dict__.setdefault("full", module.train)

def train(model, train_set, eval_set, recipe=None, **options):
    recipe = dataclasses.replace(recipe or module.Recipe(), epochs=1)
    return full(model, Subset(train_set, range(64)), Subset(eval_set, range(64)), recipe, **options)

module.train = train
"""


def names_of(node: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """The names that a statement sets, those whose parts it changes, and those that it reads."""
    tables = [symtable.symtable(ast.unparse(node), "<cell>", "exec")]
    symbols = tables[0].get_symbols()
    sets = {name.get_name() for name in symbols if name.is_assigned() or name.is_imported()}
    reads = {name.get_name() for name in symbols if name.is_referenced()}
    for table in tables:  # and the functions and classes within
        tables += table.get_children()
        reads |= {name.get_name() for name in table.get_symbols() if name.is_global()}
    changes = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            part = part.value.func  # a method called for its effect
        elif not isinstance(getattr(part, "ctx", None), ast.Store | ast.Del):
            continue
        while isinstance(part, ast.Attribute | ast.Subscript):
            part = part.value
            changes |= {part.id} if isinstance(part, ast.Name) else set()
    return sets, changes, reads


def leading_to_the_last(cells: list) -> list:
    """The last code cell, and those before it that set or change a name which it needs."""
    transform, kept, wanted = TransformerManager().transform_cell, [], set()
    bodies = [ast.parse(transform(cell.source)).body for cell in cells]
    imports = (n for b in bodies for n in b if isinstance(n, ast.Import | ast.ImportFrom))
    imported = {(alias.asname or alias.name).split(".")[0] for n in imports for alias in n.names}
    for cell, body in zip(reversed(cells), reversed(bodies), strict=True):
        parts = [names_of(node) for node in body]
        if not kept or any((sets | changes - imported) & wanted for sets, changes, _ in parts):
            kept.append(cell)
            for sets, _, reads in reversed(parts):
                wanted = wanted - sets | reads
    return kept[::-1]


def cut_to_widget(path: Path) -> nbformat.NotebookNode:
    """The chapter's widget and the cells that it needs, with one step of training for each run.

    That every cell runs, and what it prints, is nbval's part. What a chapter concludes from real
    training may fail here; its widget must work all the same.
    """
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = max(i for i, cell in enumerate(code) if "widgets.explore(" in cell.source)
    needed = leading_to_the_last(code[: last + 1])
    notebook.cells = [nbformat.v4.new_code_cell(SHORT_TRAINING), *needed]
    for cell in notebook.cells[:-1]:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]
    return notebook


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_widget_moves_with_the_keyboard(lab, page, kernel, path):
    address, course = lab
    name = f"chapters/widget_{path.name}"
    nbformat.write(cut_to_widget(path), course / name)
    ask(address, "sessions", {"path": name, "name": name, "type": "notebook", "kernel": kernel})
    open_notebook(page, address, name)
    run_all(page)
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    picture = panel.locator(".jp-OutputArea figure img").last
    # JupyterLab draws only the cells in sight, and finds their heights as it goes. Between two
    # cells the kernel is idle too, so a long chapter may still be running.
    for _ in range(1200):
        panel.locator(".jp-WindowedPanel-outer").evaluate("e => { e.scrollTop = e.scrollHeight }")
        page.wait_for_timeout(500)
        if picture.count():
            break
        if seconds_at_rest(address, name) > 15:
            # Now and then JupyterLab loses what it is told to run while it still connects.
            run_all(page)
    picture.wait_for(state="visible")
    before = picture.get_attribute("src"), picture.get_attribute("alt")
    assert len(before[1]) > 20
    handle = panel.locator(".widget-slider .noUi-handle").first
    handle.focus()
    key = "ArrowRight"
    if float(handle.get_attribute("aria-valuenow")) == float(handle.get_attribute("aria-valuemax")):
        key = "ArrowLeft"
    page.keyboard.press(key)
    expect(picture).not_to_have_attribute("src", before[0], timeout=PATIENCE)
    expect(picture).not_to_have_attribute("alt", before[1])
    page.wait_for_timeout(300)
    screenshot(page, f"widget_{path.stem}")


def cell(page: Page, index: int):
    """A cell of the open notebook, by its place."""
    return page.locator(f'.jp-NotebookPanel .jp-Cell[data-windowed-list-index="{index}"]')


def run_cell(page: Page, index: int, source: str | None = None) -> None:
    """Click into a cell, type ``source`` in place of what is there, and press Control+Enter."""
    cell(page, index).locator(".cm-content").click()
    if source is not None:
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(500)
    page.wait_for_selector(IDLE, timeout=PATIENCE)


def test_an_exercise_goes_from_a_helpful_message_to_a_tick(lab, page):
    """Run the check on the stub, on a plausible wrong answer, and on the right one."""
    address, _ = lab
    name, grade_id, check_id = "01-plain", "plain-layer", "plain-layer-values"
    cells = nbformat.read(ROOT / f"solutions/{name}/{name}.ipynb", as_version=4).cells
    question = next(index for index, cell in enumerate(cells) if cell.id == grade_id)
    check = next(index for index, cell in enumerate(cells) if cell.id == check_id)
    lines = cells[question].source.splitlines()
    right = "\n".join(line for line in lines if "SOLUTION" not in line)  # nbgrader's marks
    wrong = tomllib.loads((ROOT / f"tests/wrong_answers/{name}.toml").read_text())["answer"][0]
    assert wrong["cell"] == grade_id

    open_notebook(page, address, f"exercises/{name}/{name}.ipynb")
    for index in range(question):
        if cells[index].cell_type == "code":
            run_cell(page, index)
    run_cell(page, question)
    run_cell(page, check)
    expect(cell(page, check)).to_contain_text("your code is still missing")
    screenshot(page, "exercise_stub")
    run_cell(page, question, right.replace(wrong["replace"], wrong["by"]))
    run_cell(page, check)
    expect(cell(page, check)).to_contain_text(wrong["says"])
    screenshot(page, "exercise_wrong")
    run_cell(page, question, right)
    run_cell(page, check)
    expect(cell(page, check).locator(".jp-OutputArea")).to_contain_text("✓")
    expect(cell(page, check)).not_to_contain_text("AssertionError")
    screenshot(page, "exercise_right")
