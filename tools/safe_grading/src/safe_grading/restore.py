"""Gives a submission the cells of the release again, whatever has become of them.

nbgrader's own OverwriteCells comes after this step. It finds cells by their grade id, and gives
them their type, their points, and, where they are locked, their text with the hidden tests. This
step does what that needs, and what it leaves: grade ids that are gone or claimed twice, cells that
were deleted, metadata that nbgrader cannot read; and it tells the lecturer what a student did.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook

from safe_grading import reading
from safe_grading.report import Step, first_line, grade_id


@dataclass
class Match:
    """Where the cells of a release are in a submission.

    A cell is recognised by its grade id; if nbgrader's metadata are gone, by its cell id, by its
    text, or as the only one left between two that are recognised.
    """

    submitted: list[NotebookNode]
    claims: list[str]  # the grade id that each submitted cell claims; empty if none
    released: list[NotebookNode]
    places: dict[int, list[int]] = field(default_factory=dict)  # by the place in the release
    recognised: dict[str, str] = field(default_factory=dict)  # grade ids that were gone, and how
    taken: set[int] = field(default_factory=set)  # places in the submission

    def __post_init__(self) -> None:
        names = [grade_id(cell) for cell in self.released]
        self._by(self.claims, names)
        ids = [cell.get("id") for cell in self.released]
        self._by([cell.get("id") for cell in self.submitted], ids, how="cell id", unique=True)
        texts = [cell.source for cell in self.released]
        self._by([cell.source for cell in self.submitted], texts, how="text")
        for index, cell in enumerate(self.released):
            # A locked cell found so would lose its text: it may be the student's.
            if index not in self.places and utils.is_solution(cell):
                between = self._left_between(index)
                if len(between) == 1:
                    self._take(index, between, how="place")

    def _take(self, index: int, places: list[int], how: str = "") -> None:
        self.places[index] = places
        self.taken.update(places)
        if how and grade_id(self.released[index]):
            self.recognised[grade_id(self.released[index])] = how

    def _by(self, theirs: list, ours: list, how: str = "", unique: bool = False) -> None:
        """Match the cells that have the same value here and there."""
        for index, value in enumerate(ours):
            if value and index not in self.places:
                same = [i for i, v in enumerate(theirs) if v == value and i not in self.taken]
                if same:
                    self._take(index, same[:1] if unique else same, how)

    def _left_between(self, index: int) -> list[int]:
        """Return the cells that nothing else is in, between the recognised neighbours of one."""
        earlier = [max(places) for other, places in self.places.items() if other < index]
        later = [min(places) for other, places in self.places.items() if other > index]
        between = range(max(earlier, default=-1) + 1, min(later, default=len(self.submitted)))
        kind = self.released[index].cell_type
        return [i for i in between if i not in self.taken and self.submitted[i].cell_type == kind]


class RestoreCells(Step):
    """Give each cell of the release its role again; put back those that were deleted.

    Metadata that no released cell has are dropped, so nobody adds points.
    """

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        info = resources["nbgrader"]
        folder = self.folder("release_directory", ".", resources)
        release = nbformat.read(Path(folder, f"{info['notebook']}.ipynb"), as_version=4)
        with Gradebook(info["db_url"]) as gradebook:
            known = gradebook.find_notebook(info["notebook"], info["assignment"])
            with_hidden_tests = {cell.name: cell.source for cell in known.source_cells}
        self._tell_of_kernel(nb, release)
        nb.metadata = NotebookNode()
        for cell in nb.cells:  # as some editors on Windows save them
            cell.source = cell.source.replace("\r\n", "\n").replace("\r", "\n")
        claims = [_claim(cell) for cell in nb.cells]
        match = Match(nb.cells, claims, release.cells)
        for name, how in match.recognised.items():
            self.tell(f"the metadata of cell {name} were gone; it was recognised by its {how}")
        for index, cell in enumerate(release.cells):
            if grade_id(cell) and index in match.places:
                copies = [nb.cells[place] for place in match.places[index]]
                self._give_role(cell, copies, with_hidden_tests[grade_id(cell)])
        for index, claim in enumerate(claims):
            if claim and index not in match.taken:
                begin = first_line(nb.cells[index].source, 40)
                self.tell(f"ignored nbgrader's metadata of a cell that begins '{begin}'")
        nb.metadata["attention"] = self._put_back(nb.cells, release.cells)
        self._tell_of_suspicious(nb.cells, release.cells)
        for index, cell in enumerate(nb.cells):
            cell.id = f"cell-{index}"  # two cells of a submission may claim the same
        nb.nbformat, nb.nbformat_minor = 4, 5
        return nb, resources

    def _tell_of_kernel(self, nb: NotebookNode, release: NotebookNode) -> None:
        theirs = nb.metadata.get("kernelspec", {}).get("name")
        ours = release.metadata.kernelspec.name
        if theirs != ours:
            self.tell(f"asks for the kernel {first_line(str(theirs))}; graded with {ours}")

    def _give_role(self, cell: NotebookNode, copies: list[NotebookNode], full: str) -> None:
        """Choose one of the copies of a released cell; the others stay, without a role."""
        name, chosen = grade_id(cell), copies[-1]
        if utils.is_solution(cell):
            answered = [copy for copy in copies if copy.source != cell.source]
            chosen = (answered or copies)[-1]
        elif any(copy.source not in (cell.source, full) for copy in copies):
            kind = "test" if utils.is_grade(cell) else "locked cell"
            self.tell(f"the {kind} {name} had been edited; restored")
        if len(copies) > 1:
            self.tell(f"the cell {name} was there {len(copies)} times")
        if chosen.cell_type != cell.cell_type:
            self.tell(
                f"the cell {name} had become a {chosen.cell_type} cell; it is a "
                f"{cell.cell_type} cell again"
            )
            chosen.pop("attachments", None)  # which no code has
        chosen.metadata = NotebookNode(cell.metadata.copy())

    def _put_back(self, cells: list[NotebookNode], released: list[NotebookNode]) -> list[str]:
        """Put back what was deleted, after the nearest released cell before it that is there.

        Return the names of the answers whose text may stand somewhere else.
        """
        present = {grade_id(cell): cell for cell in cells if grade_id(cell)}
        elsewhere: list[str] = []
        last, answered = -1, True
        for cell in released:
            name = grade_id(cell)
            if not name:
                continue
            if utils.is_solution(cell):
                answered = name in present
            if name in present:
                last = max(last, next(i for i, c in enumerate(cells) if c is present[name]))
            elif utils.is_solution(cell) and not utils.is_grade(cell):
                # The stub put back could undo an answer that stands in a cell of its own.
                self.tell(f"the cell {name} for an answer was missing")
            else:
                # Without the cell of the answer, the answer may stand anywhere: test at the end.
                last = last + 1 if answered else len(cells)
                cells.insert(last, nbformat.from_dict(cell))
                what = "test" if utils.is_grade(cell) else "cell"
                if utils.is_solution(cell):
                    elsewhere.append(name)
                    what = "cell"
                self.tell(f"the {what} {name} was missing; put back")
        return elsewhere

    def _tell_of_suspicious(self, cells: list[NotebookNode], released: list[NotebookNode]) -> None:
        texts = {cell.source for cell in released}
        questions = [cell for cell in released if cell.cell_type == "code" and grade_id(cell)]
        shown = set().union(*(reading.suspicious(cell.source) for cell in questions))
        for index, cell in enumerate(cells):
            own = cell.cell_type == "code" and not utils.is_locked(cell)
            if own and cell.source not in texts:
                # An answer may use what its question shows.
                if names := reading.suspicious(cell.source) - shown:
                    self.tell(f"cell {index} uses {', '.join(sorted(names))}: read it")


def _claim(cell: NotebookNode) -> str:
    """Set nbgrader's metadata aside, whatever shape they have; return the grade id in them."""
    metadata = cell.metadata.pop("nbgrader", None)
    name = metadata.get("grade_id") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""
