"""Which files are an assignment's notebooks: by the grade ids in them, or by their names."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What is added to a name, and what folders are called, without saying who.
MARKS = set(
    "abgabe aktuell assignment assignments attempt copia copie copy cópia code correct desktop "
    "devoir documents done download downloads entrega exercise exercises fertig file files final "
    "finale finished fixed folder hausaufgabe homework hw kopia kopie lab last latest lösung neu "
    "new notebook notebooks old ordner project solution solutions solved src submission "
    "submissions submitted tarea task tp untitled updated upload uploads version work working zip "
    "副本 作业 最终".split()
)
SMALL = set("a an and de den der do la mine my of the von".split())  # beside one of those
SEPARATORS = re.compile(r"[\s_\-().,\[\]{}~+–—]+")


def somebody(text: str, numbers: bool = True) -> str:
    """Return what of a name may be a student's; nothing if it is only ``final (2)`` and the like.

    With ``numbers``, a text of digits alone is a student's number.
    """
    tokens = [token for token in SEPARATORS.split(text.casefold()) if token]
    words = [re.sub(r"\d{1,2}$", "", token) for token in tokens]
    marks = [word in MARKS or word in ("", "v") for word in words]
    if numbers and len(tokens) == 1 and tokens[0].isdigit():
        return text.strip(" _-")
    only_marks = any(marks) or not tokens
    only_marks &= all(mark or word in SMALL for mark, word in zip(marks, words, strict=True))
    return "" if only_marks else text.strip(" _-")


def around(stem: str, notebook: str) -> tuple[str, str] | None:
    """Return what stands before and after a notebook's name in that of a file; None without it."""
    name = r"[\s_\-–—]*".join(re.escape(token) for token in SEPARATORS.split(notebook))
    match = re.search(rf"(?<![^\W_]){name}(?![^\W_])", stem, re.I)
    return (stem[: match.start()], stem[match.end() :]) if match else None


def copy_number(stem: str) -> int:
    """Return the number that a browser or platform adds to the name of a second file."""
    match = re.search(r"(?:\((\d{1,3})\)|[-_ ]copy[-_ ]?(\d{1,3})|-(\d{1,3}))\s*$", stem, re.I)
    return int(next(filter(None, match.groups()))) if match else 0


@dataclass(frozen=True)
class Verdict:
    """What a file is: one of the assignment's notebooks, or why not."""

    notebook: str = ""
    why_not: str = ""
    exact: bool = False  # its name is the notebook's
    before: str = ""  # what its name may say of the student, before the notebook's name
    after: str = ""  # and after it
    content: bytes = b""  # where that must be written in another way than it came


def load(content: bytes) -> Any:
    """Read a notebook in whatever encoding an editor has saved it."""
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    return json.loads(content.decode("utf-16" if wide else "utf-8-sig"))


def grade_ids(notebook: Any) -> set[str]:
    """Return the grade ids in a notebook of any version; whatever else it holds is passed over."""
    sheets = notebook.get("worksheets") or [notebook]
    ids = set()
    for sheet in sheets if isinstance(sheets, list) else []:
        cells = sheet.get("cells") if isinstance(sheet, dict) else None
        for cell in cells if isinstance(cells, list) else []:
            metadata = cell.get("metadata") if isinstance(cell, dict) else None
            nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
            name = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
            if isinstance(name, str):
                ids.add(name)
    return ids


class Recogniser:
    """Knows the notebooks of an assignment, and those of the others."""

    def __init__(self, assignment: str, folders: Iterable[Path]):
        """``folders`` hold assignments, as released or as written."""
        self.ours: dict[str, set[str]] = {}
        self.others: dict[str, set[str]] = {}
        for folder in folders:
            for path in sorted(folder.glob("*/*.ipynb")):
                known = self.ours if path.parent.name == assignment else self.others
                try:
                    known.setdefault(path.stem, grade_ids(load(path.read_bytes())))
                except (ValueError, AttributeError, OSError, RecursionError):
                    continue

    def verdict(self, name: str, path: Path) -> Verdict:
        """Return what a file is."""
        if not name.lower().endswith(".ipynb"):
            return Verdict(why_not="no notebook")
        content = path.read_bytes()
        try:
            notebook = load(content)
            if not isinstance(notebook, dict) or not {"cells", "worksheets"} & notebook.keys():
                return Verdict(why_not="not a notebook, in spite of its name")
            ids = grade_ids(notebook)
        except (ValueError, RecursionError, MemoryError):
            return Verdict(why_not="not a notebook, or a damaged one: it cannot be read")
        stem = name[: -len(".ipynb")]
        own, share = self._by_ids(ids, self.ours)
        other, their_share = self._by_ids(ids, self.others)
        named = next((one for one in self.ours if around(stem, one)), "")
        if their_share > share:
            return Verdict(why_not=f"a notebook of {other}: its cells are that one's")
        if not (chosen := own or named):
            return Verdict(why_not="not this assignment's notebook, by its name and its cells")
        before, after = around(stem, chosen) or ("", "")
        ours = content if content[:1] == b"{" else json.dumps(notebook).encode()
        return Verdict(
            chosen,
            exact=stem == chosen,
            before=somebody(before),
            after=somebody(after, numbers=len(after.strip(" _-()")) > 3),
            content=ours if ours is not content else b"",
        )

    @staticmethod
    def _by_ids(ids: set[str], known: dict[str, set[str]]) -> tuple[str, float]:
        """Return the notebook that has most of these grade ids, and how many of its are here.

        It is one if they are three or half of them: assignments share some.
        """
        shares = {name: len(ids & its) / max(1, len(its)) for name, its in known.items()}
        best = max(shares, key=lambda name: shares[name], default="")
        enough = best and len(ids & known[best]) >= min(3, len(known[best]) / 2)
        return (best, shares[best]) if best and shares[best] and enough else ("", 0.0)
