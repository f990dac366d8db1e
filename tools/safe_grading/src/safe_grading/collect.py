"""Collects what a class handed in, as ``nbgrader zip_collect`` does, but loses no file silently.

nbgrader unpacks archives, asks for each file whose it is, and copies it. It stops at the first
thing that it did not expect. So ``ClassExtractor`` decides all of that before, and lays out for
nbgrader only what is to be copied; ``ClassCollector`` says where to. Of each file it is said
whether it was taken, and why not; one file never stops another.
"""

import filecmp
import logging
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nbgrader.plugins import ExtractorPlugin, FileNameCollectorPlugin

from safe_grading import platforms
from safe_grading.folders import Folders
from safe_grading.names import printable, safe_name
from safe_grading.platforms import Origin
from safe_grading.recognise import Recogniser, Verdict, copy_number
from safe_grading.unpack import Found, files_of, without_ending

TIMESTAMP = "timestamp.txt"  # where nbgrader keeps when something was handed in


@dataclass(frozen=True)
class Piece:
    """A file and what is known of it."""

    found: Found
    verdict: Verdict
    origin: Origin
    archived: float  # when the archive around it was changed last

    @property
    def age(self) -> tuple[str, int, float, float, int, bool]:
        """Return what is greater for what was handed in later."""
        stem = self.found.parts[-1].removesuffix(".ipynb")
        return (
            self.origin.attempt,
            self.origin.number,
            self.found.time,
            self.archived,
            copy_number(stem),
            self.verdict.exact,
        )

    @property
    def submission(self) -> tuple[str, str]:
        """Return what is the same for files that were handed in together."""
        return self.origin.attempt, self.found.parts[0] if self.found.archives else ""


@dataclass
class Chosen:
    """What is taken of one student: files by the path that they get."""

    files: dict[str, Found] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)  # that are written in another way
    time: datetime | None = None  # in UTC, if the platform says it


class Class:
    """Decides which file is whose, which of them count, and what is left and why."""

    def __init__(self, found: list[Found], recogniser: Recogniser, assignment: str, top: Path):
        self.assignment, self.recogniser, self.top = assignment, recogniser, top
        self.left: dict[Found, str] = {}
        self.took: dict[Found, str] = {}
        self.chosen: dict[str, Chosen] = {}
        self.without: set[str] = set()
        self.verdicts = {one: recogniser.verdict(one.parts[-1], one.path) for one in found}
        by_student: dict[str, list[Piece]] = defaultdict(list)
        for piece in self._pieces(found):
            by_student[piece.origin.student].append(piece)
        folders: set[str] = set()  # on macOS and Windows Ada and ada are one
        for student, pieces in sorted(by_student.items()):
            name, number = student, 1
            while name.casefold() in folders:
                number += 1
                name = f"{student} ({number})"
            folders.add(name.casefold())
            self._choose(name, pieces)

    def _pieces(self, found: list[Found]) -> Iterable[Piece]:
        """Return the files that somebody handed in."""
        users = platforms.receipts(found)
        unsaid = []
        for one in found:
            origin = platforms.origin(one, self.assignment, users)
            if origin is None:
                unsaid.append(one)
            elif origin.useless:
                self.left[one] = origin.useless
                self.without.add(origin.student)
            else:
                self.without.add(origin.student)
                yield self._piece(one, origin)
        inside: set[Found] = set()
        for work in Folders(unsaid, self.verdicts, self.assignment).works():
            for one, inner in work.files:
                inside.add(one)
                if work.student:
                    yield self._piece(one, Origin(work.student, inner))
                else:
                    self.left[one] = "nothing says whose it is: put it into a folder of that name"
        for one in unsaid:
            if one not in inside:
                why = self.verdicts[one].why_not
                plain = f"no notebook of {self.assignment} is with it"
                self.left[one] = plain if why == "no notebook" else why

    def _piece(self, found: Found, origin: Origin) -> Piece:
        outer = self.top / found.parts[0]
        archived = outer.stat().st_mtime if found.archives and outer.is_file() else 0.0
        return Piece(found, self.verdicts[found], origin, archived)

    def _choose(self, student: str, pieces: list[Piece]) -> None:
        """Take the newest of each notebook, and the other files that came with it."""
        notebooks: dict[str, list[Piece]] = defaultdict(list)
        for piece in pieces:
            if piece.verdict.notebook:
                notebooks[piece.verdict.notebook].append(piece)
        chosen = Chosen()
        newest: Piece | None = None
        for name, candidates in notebooks.items():
            best = max(candidates, key=lambda piece: piece.age)
            newest = max(newest or best, best, key=lambda piece: piece.age)
            self._take(chosen, f"{name}.ipynb", best.found, student, self._note(best, candidates))
            if best.verdict.content:
                chosen.contents[f"{name}.ipynb"] = best.verdict.content
            for piece in candidates:
                if piece is not best:
                    self.left[piece.found] = f"{student} handed in another one later"
        for piece in pieces:
            if not piece.verdict.notebook:
                self._with(chosen, newest, piece, student)
        if newest is not None:
            self.without.discard(pieces[0].origin.student)
            chosen.time = newest.origin.time
            self.chosen[student] = chosen

    @staticmethod
    def _note(best: Piece, candidates: list[Piece]) -> str:
        notes = [best.origin.note]
        if len(candidates) > 1:
            notes.append(f"the newest of {len(candidates)}")
        if best.verdict.content:
            notes.append("read from another encoding")
        return ", ".join(filter(None, notes))

    def _take(self, chosen: Chosen, target: str, found: Found, student: str, note: str) -> None:
        chosen.files[target] = found
        self.took[found] = f"{student}/{target}" + (f" ({note})" if note else "")

    def _with(self, chosen: Chosen, newest: Piece | None, piece: Piece, student: str) -> None:
        """Take a file that is no notebook along with the notebook that it came with."""
        found = piece.found
        if piece.verdict.why_not != "no notebook":
            self.left[found] = piece.verdict.why_not
        elif newest is None:
            self.left[found] = f"{student} handed in no notebook of {self.assignment} with it"
        elif piece.submission != newest.submission:
            self.left[found] = f"{student} handed in something else later"
        else:
            inner, base = piece.origin.inner, newest.origin.inner[:-1]
            if inner[: len(base)] == base:
                inner = inner[len(base) :]
            target = "/".join(safe_name(without_ending(part)) for part in inner[:-1])
            target = f"{target}/{safe_name(inner[-1])}".lstrip("/")
            taken = {one.casefold() for one in chosen.files}
            if target.casefold() == TIMESTAMP:
                self.left[found] = "who hands in does not say when"
            elif self._meets(target.casefold(), taken):
                self.left[found] = f"there is another {target} of {student}"
            else:
                self._take(chosen, target, found, student, "")

    @staticmethod
    def _meets(target: str, taken: set[str]) -> bool:
        """Return whether a path is taken, or a folder of it is a file, or it is a folder."""
        return any(
            target == one or target.startswith(f"{one}/") or one.startswith(f"{target}/")
            for one in taken
        )


class ClassExtractor(ExtractorPlugin):
    """Unpacks what was downloaded, and lays out what is new, by students."""

    def extract(self, archive_path: str, extracted_path: str) -> None:
        """Decide about every file below ``archive_path``; say so; lay out what is new."""
        course = self.parent.coursedir
        assignment = course.assignment_id
        self.targets: dict[str, tuple[str, str, datetime | None]] = {}
        folders = [
            Path(course.format_path(step, ".", ".")).resolve()
            for step in (course.release_directory, course.source_directory)
        ]
        recogniser = Recogniser(assignment, folders)
        with tempfile.TemporaryDirectory(prefix="collect") as store:
            found, left = files_of(Path(archive_path), Path(store))
            if not recogniser.ours:
                print(f"Release it first: nbgrader generate_assignment --force {assignment}")
                found = []
            handed_in = Class(found, recogniser, assignment, Path(archive_path))
            lines = [f"left  {printable(what)}: {printable(why)}" for what, why in left]
            for one in found:
                shown = printable(one.shown)
                if one in handed_in.took:
                    lines.append(f"took  {shown} -> {handed_in.took[one]}")
                else:
                    lines.append(f"left  {shown}: {printable(handed_in.left[one])}")
            same = 0
            for student, chosen in handed_in.chosen.items():
                try:
                    same += not self._lay_out(student, chosen, Path(extracted_path))
                except OSError as error:
                    lines.append(f"left  all of {student}: {error}")
        lines.sort(key=lambda line: (line[6:].casefold(), line))
        taken = len(handed_in.took)
        students = len(handed_in.chosen)
        lines.append(
            f"{taken} files taken, {len(lines) - taken} left; "
            f"{students} students, {same} of them as they were"
        )
        if handed_in.without:
            lines.append(f"no notebook of: {', '.join(sorted(handed_in.without))}")
        self._report(lines, Path(extracted_path).parent / "collected.txt")

    def _report(self, lines: list[str], path: Path) -> None:
        """Print what became of each file, and keep it."""
        text = "\n".join(lines)
        if hasattr(sys.stdout, "reconfigure"):  # a name must not stop a class
            sys.stdout.reconfigure(errors="backslashreplace")
        print(f"{text}\n(kept in {path})", flush=True)
        path.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
        if self.parent.log_level > logging.DEBUG:
            self.log.setLevel(logging.ERROR)  # nbgrader would say it all again

    def _lay_out(self, student: str, chosen: Chosen, extracted: Path) -> bool:
        """Write a student's files where nbgrader takes them from; return whether any is new."""
        course = self.parent.coursedir
        there = Path(course.format_path(course.submitted_directory, student, course.assignment_id))
        here = extracted / student
        for target, found in chosen.files.items():
            path = here / target
            path.parent.mkdir(parents=True, exist_ok=True)
            if target in chosen.contents:
                path.write_bytes(chosen.contents[target])
            else:
                shutil.copyfile(found.path, path)
        if self._is_there(here, there, chosen):
            shutil.rmtree(here)
            return False
        if there.is_symlink() or there.is_file():
            there.unlink()
        elif there.exists():
            shutil.rmtree(there)
        there.mkdir(parents=True)  # nbgrader wants it empty
        for target in chosen.files:
            self.targets[os.path.normpath(here / target)] = (student, target, chosen.time)
        return True

    @staticmethod
    def _is_there(here: Path, there: Path, chosen: Chosen) -> bool:
        """Return whether exactly this was collected before."""
        if there.is_symlink() or not there.is_dir():
            return False
        before = {str(path.relative_to(there)) for path in there.rglob("*") if not path.is_dir()}
        stamp = there / TIMESTAMP
        if chosen.time is not None:
            if not stamp.is_file() or stamp.read_text().strip() != chosen.time.isoformat(" "):
                return False
        return before - {TIMESTAMP} == {str(Path(one)) for one in chosen.files} and all(
            filecmp.cmp(here / one, there / one, shallow=False) for one in chosen.files
        )


class ClassCollector(FileNameCollectorPlugin):
    """Says of each file that ``ClassExtractor`` laid out whose it is."""

    def collect(self, submitted_file: str) -> dict[str, object] | None:
        """Return the student, the name and the time of a file."""
        targets = getattr(self.parent.extractor_plugin_inst, "targets", {})
        known = targets.get(os.path.normpath(submitted_file))
        if known is None:
            return None
        student, target, time = known
        return {"student_id": student, "file_id": target, "timestamp": time}
