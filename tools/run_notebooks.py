"""Run notebooks and store their outputs, as they are committed.

    uv run python tools/run_notebooks.py                          # every chapter and solution
    uv run python tools/run_notebooks.py chapters/03_*.ipynb      # some of them

What only a live kernel can show (widgets, progress bars) and what changes from run to run (times,
versions) is left out, so that a second run changes nothing but what the code changed. A notebook
whose code fails is not written.
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    """Execute one notebook in its own folder and write it back."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": path.parent}}
    client = NotebookClient(
        notebook,
        timeout=600,
        resources=resources,
        store_widget_state=False,
        coalesce_streams=True,  # a cell's lines are one output, however slowly they came
    )
    client.execute()
    tidy(notebook)
    nbformat.validate(notebook)
    temporary = path.with_suffix(".part")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def tidy(notebook: NotebookNode) -> None:
    """Drop from a notebook what differs from run to run."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all if none is given")
    every = [*sorted(ROOT.glob("chapters/*.ipynb")), *sorted(ROOT.glob("solutions/*/*.ipynb"))]
    for path in tqdm(parser.parse_args().paths or every):
        started = time.perf_counter()
        run(path)
        tqdm.write(f"{path.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
