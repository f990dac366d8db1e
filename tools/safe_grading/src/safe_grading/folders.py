"""Who handed a file in where no platform says so: by folders, archives and names of files.

A class is a folder or an archive of students, a student's work a folder, an archive or a file
``STUDENT_01-plain.ipynb``. What is around that, and what is inside it, may be called anything: a
folder is a student's if notebooks of the assignment lie in it, or below it and in the folders
beside it as well.
"""

from dataclasses import dataclass, field

from safe_grading.names import student_name
from safe_grading.recognise import Verdict, somebody
from safe_grading.unpack import Found, without_ending


@dataclass
class Work:
    """What one student handed in."""

    student: str  # nothing if no name says who
    files: list[tuple[Found, tuple[str, ...]]]  # and the path of each in it


@dataclass
class Node:
    """A folder or archive on the way."""

    name: str
    depth: int
    files: list[Found] = field(default_factory=list)
    children: dict[str, "Node"] = field(default_factory=dict)

    def everything(self) -> list[Found]:
        """Return the files here and below."""
        return self.files + [f for child in self.children.values() for f in child.everything()]


class Folders:
    """Sorts files by students."""

    def __init__(self, files: list[Found], verdicts: dict[Found, Verdict], assignment: str):
        self.verdicts, self.assignment = verdicts, assignment
        self.root = Node("", 0)
        for found in files:
            node = self.root
            for index, part in enumerate(found.parts[:-1]):
                name = without_ending(part) if index in found.archives else part
                node = node.children.setdefault(part, Node(name, index + 1))
            node.files.append(found)

    def works(self) -> list[Work]:
        """Return the students' works; files that belong to none are in no work."""
        return [self._renamed(work) for work in self._works(self.root)]

    @staticmethod
    def _renamed(work: Work) -> Work:
        return Work(student_name(work.student) if work.student else "", work.files)

    def _is_ours(self, found: Found) -> bool:
        return bool(self.verdicts[found].notebook)

    def _own_name(self, node: Node) -> str:
        """Return the name of a folder if it may be a student's."""
        same = node.name.casefold() == self.assignment.casefold()
        return "" if same else somebody(node.name.removeprefix(self.assignment))

    @staticmethod
    def _all_of(node: Node, student: str) -> Work:
        """Return all below a folder as one student's work."""
        return Work(student, [(f, f.parts[node.depth :]) for f in node.everything()])

    def _works(self, node: Node) -> list[Work]:
        top = node.depth == 0
        direct = [found for found in node.files if self._is_ours(found)]
        # In a folder with a notebook that no name stands before, names are the student's own.
        callers = {found: self._caller(found) for found in direct}
        if not top and len(set(callers.values())) < 2:
            # One notebook: what stands after its name is hardly the student's.
            callers = {found: self.verdicts[found].before for found in direct}
        plain = [found for found in direct if not callers[found]]
        if plain and not top and len(set(filter(None, callers.values()))) < 2:
            return [self._all_of(node, self._own_name(node))]
        works = [
            Work(student, self._beside(node, student, callers))
            for student in dict.fromkeys(filter(None, callers.values()))
        ]
        works += [Work("", [(found, found.parts[-1:])]) for found in plain]
        below = [
            (child, found) for child in node.children.values() if (found := self._works(child))
        ]
        if len(below) + len(works) > 1 and all(len(found) == 1 for _, found in below):
            # Students side by side: what is in a folder does not say who it is.
            for child, [only] in below:
                works.append(self._all_of(child, self._own_name(child) or only.student))
        else:
            works += [work for _, found in below for work in found]
        nameless = [work for work in works if not work.student]
        if nameless and not top:
            if len(nameless) == len(works):
                return [self._all_of(node, self._own_name(node))]
            works = [work for work in works if work.student]
            works.append(
                Work(self._own_name(node), [pair for work in nameless for pair in work.files])
            )
        return works

    def _caller(self, found: Found) -> str:
        verdict = self.verdicts[found]
        return verdict.before or verdict.after

    def _beside(
        self, node: Node, student: str, callers: dict[Found, str]
    ) -> list[tuple[Found, tuple[str, ...]]]:
        """Return a student's files among those that lie side by side, by how their names begin."""
        files = [(found, found.parts[-1:]) for found, who in callers.items() if who == student]
        for found in node.files:
            name = found.parts[-1]
            if found not in callers and name.startswith(f"{student}_"):
                files.append((found, (name[len(student) + 1 :],)))
        return files
