"""The glossary and the notation page know every term and symbol, and are linked."""

import functools
import itertools
import re
from pathlib import Path

import pytest
from helpers import CHAPTERS, ROOT, cells, notebook, text_of

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
    text = text_of(path)
    known = symbols(mathematics(first_columns(PAGES[1])))
    assert symbols(mathematics(text)) <= known


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_links_both_pages(path):
    first = notebook(path).cells[0].source
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


# --- Where a row leads --------------------------------------------------------------------------


@functools.cache
def texts() -> dict[int, str]:
    """What each chapter says, without the map of the course, which names what others explain."""
    found = {}
    for path in CHAPTERS:
        said = [cell.source for cell in cells(path, "markdown")]
        said = [text for text in said if not text.startswith("## The course\n")]
        found[int(path.name[:2])] = "\n\n".join(said)
    return found


def rows(page: Path) -> list:
    """The first column of each row and the chapters in its last one."""
    found = []
    for line in page.read_text().splitlines():
        if line.startswith("|") and not line.startswith(("| term", "| symbol", "|---")):
            columns = [column.strip() for column in line.split("|")]
            chapters = [int(number) for number in re.findall(r"\[(\d+)\]\(", columns[-2])]
            found.append(pytest.param(columns[1], chapters, id=columns[1]))
    return found


def forms(term: str) -> list[str]:
    """The forms of a term: "batch normalisation (BN)" has two, and commas part others."""
    found = []
    for part in term.split(", "):
        both = re.fullmatch(r"(.+) \((.+)\)", part)
        found += both.groups() if both else [part]
    return found


def stem(word: str) -> str:
    """A word without what grammar has put at its end."""
    return re.sub(r"(ation|isation|ing|ion|ed|es|s|e)$", "", word) if len(word) > 4 else word


def uses_term(text: str, form: str) -> bool:
    """Whether the words of a term stand together, in any order and with any ending."""
    stems = [re.escape(stem(word)) for word in re.split(r"[ -]", form.lower())]
    orders = [r"\w*\W+(?:\w+\W+){0,3}?".join(order) for order in itertools.permutations(stems)]
    return any(re.search(r"\b" + order, text.lower()) for order in orders)


@functools.cache
def marked(number: int, mark: str) -> set[tuple[str, ...]]:
    """The terms that a chapter sets bold (or in italics), but not as the label of a list's item."""
    text = re.sub(
        r"```.*?```|`[^`]*`|^\s*- (?:The )?\*\*.*?\*\*", "", texts()[number], flags=re.M | re.S
    )
    star = re.escape(mark)
    found = re.findall(rf"(?<!\*){star}(?![\s*])([^*]+){star}(?!\*)", text)
    return {words_of(term) for term in found}


def words_of(term: str) -> tuple[str, ...]:
    words = re.findall(r"\w+", term.lower())
    return tuple(stem(word) for word in words if word not in ("the", "a", "an"))


@pytest.mark.parametrize(("term", "chapters"), rows(PAGES[0]))
def test_a_term_leads_to_the_first_chapter_that_defines_it(term, chapters):
    """A definition is bold. One in italics will do where no earlier chapter has a bold one."""
    used = {n: [f for f in forms(term) if uses_term(text, f)] for n, text in texts().items()}
    assert all(used[number] for number in chapters), f"used in {[n for n in used if used[n]]}"
    words = {words_of(form) for form in forms(term)}
    defining = [number for number in texts() if words & marked(number, "**")]
    earlier = [n for n in chapters if words & marked(n, "*") and n < min(defining, default=0)]
    assert not defining or defining[0] in chapters or earlier, f"defined in {defining}"


@functools.cache
def formulas(number: int, exercises: bool = False) -> str:
    """The formulas of a chapter, or those of its exercises."""
    text = texts()[number]
    if exercises:
        paths = ROOT.glob(f"solutions/{number:02}-*/*.ipynb")
        text = "\n\n".join(map(text_of, paths))
    return "\n".join(tokens(formula) for formula in mathematics(text))


def tokens(formula: str) -> str:
    """A formula with a space on both sides of whatever LaTeX reads as one."""
    found = re.findall(r"\\[A-Za-z]+|\\.|\d+|\S", formula)
    return " " + "".join(f"{token} " for token in found if token != r"\,")


def uses_formula(number: int, formula: str, exercises: bool = False) -> bool:
    """Whether a chapter, or its exercises, has a formula; a dot in it stands for anything."""
    wanted = re.escape(tokens(formula)).replace(re.escape(r"\cdot"), ".+?")
    return re.search(wanted, formulas(number, exercises)) is not None


def first_formulas(row: str) -> list[str]:
    """What a row is about, as chapters write it: of a concatenation its beginning."""
    found = [re.sub(r"^(\[.*?),.*", r"\1,", formula) for formula in mathematics(row)]
    return [formula for formula in found if formula.strip()]  # an operator's name is none


@pytest.mark.parametrize(("row", "chapters"), rows(PAGES[1]))
def test_a_symbol_leads_to_the_first_chapter_that_uses_it(row, chapters):
    """To the first one where the symbol means one thing only, else to one that uses it."""
    letters = [symbols(mathematics(param.values[0])) for param in rows(PAGES[1])]
    needless = set(chapters) if first_formulas(row) else set()
    for formula in first_formulas(row):
        using = [number for number in texts() if uses_formula(number, formula)]
        there = {n for n in chapters if n in using or uses_formula(n, formula, exercises=True)}
        assert there, f"${formula}$ is used in {using}"
        own = symbols([formula])
        several = len(own) == 1 and sum(bool(own & others) for others in letters) > 1
        assert several or not using or using[0] in chapters, f"${formula}$ is used in {using}"
        needless -= there
    assert not needless
