"""The glossary and the notation page know every term and symbol, and are linked."""

import re
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parent.parent / "chapters").glob("*.ipynb"))
PAGES = [CHAPTERS[0].with_name(name) for name in ("glossary.md", "notation.md")]
# Commands of LaTeX that lay out or relate, and name nothing.
NO_SYMBOLS = set(
    "approx bar big Big bigl bigr cdot cdots dots dfrac frac ge geq hat in infty langle lceil le "
    "left leftarrow leq lfloor ll ln log gg max min ne neq overline qquad quad rangle rceil rfloor "
    "right Rightarrow Longrightarrow sqrt sum tfrac tilde times to underbrace cup mid colon".split()
)


def mathematics(text: str) -> list[str]:
    """What stands between dollar signs, without code and words in it."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    found = re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, flags=re.S)
    words = r"\\(?:text|operatorname|mathrm|mathbf|begin|end)\{[^}]*\}"
    return [re.sub(words, "", display or inline) for display, inline in found]


def symbols(formulas: list[str]) -> set[str]:
    found = {token for f in formulas for token in re.findall(r"\\[A-Za-z]+|[A-Za-z]", f)}
    return {token for token in found if token.lstrip("\\") not in NO_SYMBOLS or len(token) == 1}


def first_columns(page: Path) -> str:
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("|")]
    return "\n".join(row[1] for row in rows)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_symbol_is_on_the_notation_page(path):
    cells = nbformat.read(path, 4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    known = symbols(mathematics(first_columns(PAGES[1])))
    assert symbols(mathematics(text)) <= known


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_links_both_pages(path):
    first = nbformat.read(path, 4).cells[0].source
    for page in PAGES:
        assert f"]({page.name})" in first, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_the_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert targets
    for target in targets:
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_row_is_complete_and_says_where_it_comes_in(page):
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    width = rows[0].count("|")
    for row in rows:
        assert row.count("|") == width, row
        if not row.startswith(("| term", "| symbol", "|---")):
            assert re.search(r"\[\d+\]\(\d\d_\w+\.ipynb\) \|$", row), row


def test_the_glossary_is_in_order():
    terms = [row.strip().lower() for row in first_columns(PAGES[0]).splitlines()[2:]]
    assert terms == sorted(terms)
