"""Autograded copies hold only what cannot run in the browser of whoever looks at them."""

from collections import Counter
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from safe_grading import cleaning
from safe_grading.report import ATTENTION, Step, first_line, grade_id

KEPT = 4000  # characters of what was taken out, in the log
# Files that a browser would show as a page, and nbgrader's settings: the Formgrader gives out what
# lies beside a notebook as it is, and reads settings from a folder that an address names.
PAGES = frozenset(
    ".htm .html .shtml .xhtml .xht .xml .xsl .xslt .svg .svgz .mht .mhtml .pdf .js .mjs".split()
)
SETTINGS = ("nbgrader_config.py", "nbgrader_config.json")
OWN_TEXT = "<IPython.core.display."  # what IPython's Latex and others are as text


class MakeHarmless(Step):
    """Reduce a graded submission to text, pictures, and HTML that nothing can run in.

    It comes after the scores are saved: nbgrader compares an answer's text with the release.
    What is taken out stands in the log, and as it was in the folder of submissions.
    """

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        for name in nb.metadata.keys() - {"kernelspec", "language_info"}:
            del nb.metadata[name]
        for index, cell in enumerate(nb.cells):
            found: Counter[str] = Counter()
            original = self._make_harmless(nb.cells, index, found)
            if found:
                name = grade_id(cell) or index
                were = "was" if sum(found.values()) == 1 else "were"
                self.tell(f"cell {name}: {cleaning.in_words(found)} {were} taken out")
                for text in original:
                    kept = first_line(text, KEPT).replace(ATTENTION, "attention ; ")
                    self.log.info(f"taken out of cell {name}: {kept}")
        self._remove_pages(resources)
        return nb, resources

    def _remove_pages(self, resources: Any) -> None:
        student = resources["nbgrader"]["student"]
        for path in self.folder("autograded_directory", student, resources).rglob("*"):
            if path.suffix.lower() in PAGES or path.name.lower() in SETTINGS:
                if path.is_file() or path.is_symlink():
                    path.unlink()
                    self.log.info(f"not in the graded copy: {first_line(path.name)}")

    def _make_harmless(
        self, cells: list[NotebookNode], index: int, found: Counter[str]
    ) -> list[str]:
        """Clean a cell; count in ``found`` what no honest cell has, and return where it stood."""
        cell = cells[index]
        own = {"nbgrader", "editable", "deletable"}
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in own})
        original: list[str] = []
        if cell.cell_type == "raw":
            code = cleaning.as_code(cell.source)
            if not grade_id(cell):
                cells[index] = new_markdown_cell(code, id=cell.id)
        elif cell.cell_type == "markdown":
            pictures = _pictures(cell.pop("attachments", {}))
            if pictures:
                cell.attachments = pictures
            source, what = cleaning.clean_markdown(cell.source, pictures)
            if what:
                original.append(cell.source)
                found.update(what)
            cell.source = source
        else:
            if not isinstance(cell.execution_count, int):
                cell.execution_count = None
            for output in cell.outputs:
                before = str(output.get("data"))
                what = clean_output(output)
                if what:
                    original.append(before)
                    found.update(what)
        return original


def _pictures(attachments: Any) -> NotebookNode:
    """Return the pictures among the attachments of a cell, by their names."""
    kept = NotebookNode()
    for name, data in attachments.items() if isinstance(attachments, dict) else ():
        shown = {
            kind: value
            for kind, value in (data.items() if isinstance(data, dict) else ())
            if kind in cleaning.PICTURES and cleaning.is_base64(value)
        }
        if shown:
            kept[name] = NotebookNode(shown)
    return kept


def clean_output(output: NotebookNode) -> Counter[str]:
    """Reduce an output to what cannot run; return what no honest output has."""
    found: Counter[str] = Counter()
    if output.output_type == "stream":
        output.text = cleaning.clean_text(output.text)
    elif output.output_type == "error":
        output.ename = cleaning.clean_text(output.ename)
        output.evalue = cleaning.clean_text(output.evalue)
        output.traceback = [cleaning.clean_text(line) for line in output.traceback]
    else:
        metadata = output.get("metadata", {})
        output.data, found = _clean_data(output.get("data", {}))
        output.metadata = NotebookNode()
        for kind in output.data:
            sizes = metadata.get(kind) if isinstance(metadata, dict) else None
            if kind in cleaning.PICTURES and isinstance(sizes, dict):
                sizes = {k: sizes.get(k) for k in ("width", "height")}
                kept = {k: v for k, v in sizes.items() if type(v) in (int, float)}
                if kept:
                    output.metadata[kind] = NotebookNode(kept)
        if output.output_type == "execute_result" and type(output.execution_count) is not int:
            output.execution_count = None
    return found


def _clean_data(data: Any) -> tuple[NotebookNode, Counter[str]]:
    """Return what may be shown of the forms in which an output came."""
    kept, found = NotebookNode(), Counter[str]()
    instead = ""
    for kind, value in data.items():
        if isinstance(value, list):
            value = "".join(map(str, value))
        if kind == "text/plain":
            kept[kind] = cleaning.clean_text(value)
        elif kind in cleaning.PICTURES:
            if cleaning.is_base64(value):
                kept[kind] = value
        elif kind == "image/svg+xml":
            found += cleaning.findings(str(value))
            if drawing := cleaning.clean_svg(value):
                kept[kind] = drawing
        elif kind == "text/html":
            found += cleaning.findings(str(value))
            if cleaned := cleaning.clean_html(value).strip():
                kept[kind] = cleaned
        elif kind == "text/markdown":
            text, what = cleaning.clean_markdown(str(value), {})
            found += what
            kept[kind] = text
        elif "javascript" in kind or "ecmascript" in kind:
            found["JavaScript output"] += 1
            instead = str(value)
        elif kind.startswith("text/"):
            instead = cleaning.clean_text(value)
    plain = kept.get("text/plain", "")
    if instead and (not plain or plain.startswith(OWN_TEXT)):
        kept["text/plain"] = cleaning.clean_text(instead)
    elif not kept:
        kept["text/plain"] = "(it cannot be shown here)"
    return kept, found
