"""Who handed a file in, as learning platforms write it into the names of their downloads.

Moodle     "Ada Lovelace_1234_assignsubmission_file_/NAME", or in place of "/NAME" "NAME" itself.
           The number is the participant's in this assignment.
Canvas     "lovelaceada_55_9001_NAME", "lovelaceada_LATE_55_9001_NAME", "anon_x1Yz2_9001_NAME": the
           user's number and the file's, which grows with each file. Canvas makes NAME-1 of the
           second file that a student calls NAME.
Blackboard "Homework 1_ada_attempt_2026-11-01-12-00-00_NAME", and without NAME, as .txt, a receipt.

Moodle's are made in mod/assign/classes/downloader.php and Canvas' in lib/content_zipper.rb.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from safe_grading.names import student_name
from safe_grading.unpack import Found

MOODLE = re.compile(
    r"(?P<name>.+?)(?:_(?P<number>\d+))?_assignsubmission_(?P<kind>[a-z]+)(?:_(?P<rest>.*))?"
)
CANVAS = re.compile(
    r"(?:(?P<name>.+?)_)??(?P<late>LATE_)?(?P<user>\d+|anon_[A-Za-z0-9]+)_"
    r"(?:(?P<file>\d+)_(?P<rest>.+)|(?P<typed>text\.html|link\.html))"
)
BLACKBOARD = re.compile(
    r"(?P<before>.+)_attempt_(?P<time>\d{4}(?:-\d\d){5})(?:_(?P<rest>.+)|(?P<receipt>\.txt))"
)
RECEIPT = re.compile(r"^\s*(?:Name|Nom|Nombre|Naam|姓名)\s*[:：].*\((?P<user>[^()\n]+)\)\s*$", re.M)


@dataclass(frozen=True)
class Origin:
    """What the platform says of a file."""

    student: str
    inner: tuple[str, ...]  # the path of the file in what the student handed in
    attempt: str = ""  # files of another attempt are another submission
    number: int = 0  # a later file has a greater one
    time: datetime | None = None  # in UTC, without saying so, as nbgrader wants it
    note: str = ""
    useless: str = ""  # why it is not a student's file


def origin(found: Found, assignment: str, users: dict[str, str]) -> Origin | None:
    """Return what a platform's name says of a file; nothing if no name on the way is one's.

    What stands in the archive that a student handed in is the student's, and says nothing. So no
    student can hand in for another. ``users`` are those that the receipts of Blackboard name.
    """
    for index, part in enumerate(found.parts):
        if sum(archive < index for archive in found.archives) > 1:
            break
        for read in (_moodle, _blackboard, _canvas):
            if said := read(part, index, found, assignment, users):
                return said
    return None


def receipts(files: list[Found]) -> dict[str, str]:
    """Return the user names in Blackboard's receipts, by what stands before ``_attempt_``."""
    users = {}
    for found in files:
        match = BLACKBOARD.fullmatch(found.parts[-1])
        if match and match["receipt"] and len(found.archives) < 2:
            text = found.path.read_bytes()[:10_000].decode("utf-8-sig", errors="replace")
            name = RECEIPT.search(text.replace("\r\n", "\n"))
            if name and match["before"].endswith(f"_{name['user']}"):
                users[match["before"]] = name["user"]
    return users


def _inner(rest: str | None, index: int, found: Found) -> tuple[str, ...]:
    return ((rest,) if rest else ()) + found.parts[index + 1 :]


def _moodle(
    part: str, index: int, found: Found, assignment: str, users: dict[str, str]
) -> Origin | None:
    match = MOODLE.fullmatch(part)
    if not match:
        return None
    inner = _inner(match["rest"], index, found)
    student = match["name"] + (f"_{match['number']}" if match["number"] else "")
    useless = "" if match["kind"] == "file" else "typed into Moodle, or a comment there"
    return Origin(student_name(student), inner, useless=useless)


def _canvas(
    part: str, index: int, found: Found, assignment: str, users: dict[str, str]
) -> Origin | None:
    if index + 1 < len(found.parts) and index not in found.archives:
        return None  # Canvas makes no folders
    match = CANVAS.fullmatch(part)
    if not match or not (match["name"] or match["user"].startswith("anon_")):
        return None
    student = "_".join(filter(None, (match["name"], match["user"])))
    return Origin(
        student_name(student),
        _inner(match["rest"], index, found),
        number=int(match["file"] or 0),
        note="late, says Canvas" if match["late"] else "",
        useless="typed into Canvas" if match["typed"] else "",
    )


def _blackboard(
    part: str, index: int, found: Found, assignment: str, users: dict[str, str]
) -> Origin | None:
    match = BLACKBOARD.fullmatch(part)
    if not match:
        return None
    before = match["before"]
    user = users.get(before, "")
    if not user and before.lower().startswith(f"{assignment.lower()}_"):
        user = before[len(assignment) + 1 :]
    try:  # the time is the platform's; this machine's zone is taken to be the same
        time = datetime.strptime(match["time"], "%Y-%m-%d-%H-%M-%S").astimezone(UTC)
    except ValueError:
        return None
    return Origin(
        student_name(user or before.rsplit("_", 1)[-1]),
        _inner(match["rest"], index, found),
        attempt=match["time"],
        time=time.replace(tzinfo=None),
        useless="Blackboard's receipt" if match["receipt"] else "",
    )
