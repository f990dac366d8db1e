"""The way through the course: every text that tells it tells what is on disk.

``faults`` compares a course with itself: the course maps, the links to the next chapter and to the
exercises and back, and whatever else names or counts chapters. Its one list is that of the files.
The tests below it rename, add and lose chapters and assignments, and each must be noticed.
"""

import functools
import json
import posixpath
import re
from collections.abc import Iterator

import pytest
from helpers import ROOT

TEXTS = (
    "*.md chapters/*.md chapters/*.ipynb solutions/*/*.ipynb exercises/*/*.ipynb "
    "densenet_from_scratch/**/*.py benchmarks/*.py tools/**/*.py deploy/*.py"
)
Course = dict[str, list[str]]  # what each file's cells say, by its path; another file is one cell
CHAPTER = re.compile(r"chapters/(\d\d)_\w+\.ipynb")
ASSIGNMENT = re.compile(r"(?:solutions|exercises)/((\d\d)-[\w-]+)/\1\.ipynb")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
PROMISES = re.compile(
    r"in preparation|under construction|coming soon|\bTODO\b|\bTBD\b|"
    r"\bnot (?:written|published|finished|there) yet|\bwill (?:be added|be written|follow soon)|"
    r"\bplanned\b",
    re.I,
)
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
NUMBERS = {word: n for n, word in enumerate(WORDS.split(), 1)}
COUNT = re.compile(
    rf"\b(\d+|{'|'.join(NUMBERS)})\s+(chapters|assignments|(?:course|exercise)?\s?notebooks)\b",
    re.I,
)
# "chapter 3", "chapters 1 to 6", "chapters 5, 6 and 7", "[chapter 8, training …", "exercise 10"
MENTION = re.compile(r"\b(?:chapter|exercise)s?\s+(\d+(?:(?:,\s+|\s+and\s+|\s+to\s+)\d+)*)\b", re.I)


def read() -> Course:
    course = {}
    for pattern in TEXTS.split():
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix == ".ipynb":
                cells = json.loads(path.read_text(encoding="utf8"))["cells"]
                course[name] = ["".join(cell["source"]) for cell in cells]
            else:
                course[name] = [path.read_text(encoding="utf8")]
    return course


def chapters(course: Course) -> dict[int, str]:
    return {int(found[1]): name for name in sorted(course) if (found := CHAPTER.fullmatch(name))}


def assignments(course: Course, folder: str) -> dict[int, str]:
    names = [name for name in sorted(course) if name.startswith(folder + "/")]
    return {int(found[2]): found[1] for name in names if (found := ASSIGNMENT.fullmatch(name))}


def title(course: Course, name: str) -> str:
    return course[name][0].splitlines()[0].partition(". ")[2]


def section(text: str, heading: str) -> str:
    """The text under a heading, or nothing."""
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return found[1] if found else ""


def target(name: str, link: str) -> str:
    """The path, from the root, that a link in a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link.partition("#")[0]))


def links(name: str, text: str) -> list[str]:
    return [target(name, link) for _, link in LINK.findall(text)]


def faults(course: Course) -> list[str]:
    return [
        *numbers(course),
        *course_maps(course),
        *next_links(course),
        *exercise_links(course),
        *mentions(course),
        *promises_and_counts(course),
    ]


def numbers(course: Course) -> Iterator[str]:
    """Chapters count from 0 without a gap; an assignment has its chapter's number."""
    there = [int(found[1]) for name in sorted(course) if (found := CHAPTER.fullmatch(name))]
    if there != list(range(len(there))):
        yield f"chapters/: the numbers are {there}"
    for number, name in chapters(course).items():
        if not course[name][0].startswith(f"# {number}. "):
            yield f"{name}: the title does not begin with {number}"
    written, released = assignments(course, "solutions"), assignments(course, "exercises")
    if written != released:
        yield f"solutions/ has {sorted(written.values())}, exercises/ {sorted(released.values())}"
    for number, assignment in written.items():
        if number not in there:
            yield f"solutions/{assignment}: there is no chapter {number}"
    documented = set()
    for name, [text, *_] in course.items():
        if name.startswith("densenet_from_scratch/course/checks/"):
            documented |= set(re.findall(r"^\"\"\"Checks of the exercises of chapter (\d+)", text))
    if {int(number) for number in documented} != set(written):
        yield f"densenet_from_scratch/course/checks/: for the chapters {sorted(documented)}"


def course_maps(course: Course) -> Iterator[str]:
    """The tables of README.md and of chapter 0 have a row for each chapter, with its exercises."""
    for page in ("README.md", chapters(course).get(0, "")):
        text = section("\n\n".join(course.get(page, [])), "The course")
        rows = [[cell.strip() for cell in row.split("|")] for row in text.splitlines()]
        found = [(row[1], row[2], row[-2]) for row in rows if len(row) > 5 and row[1].isdigit()]
        expected = []
        for number, name in chapters(course).items():
            here = posixpath.dirname(page)
            label = f"[{title(course, name)}]({posixpath.relpath(name, here)})"
            if name == page:
                label = f"**{title(course, name)}** (this page)"
            exercises = ""
            if assignment := assignments(course, "exercises").get(number):
                there = f"exercises/{assignment}/{assignment}.ipynb"
                exercises = f"[{assignment}]({posixpath.relpath(there, here)})"
            expected.append((str(number), label, exercises))
        for row in sorted(set(found) ^ set(expected)):
            yield f"{page}: the map {'lacks' if row in expected else 'should not have'} {row}"
        if len(found) != len(expected):
            yield f"{page}: the map has {len(found)} rows"


def next_links(course: Course) -> Iterator[str]:
    """Each chapter ends with a link to the next one, and the last one says that it is the last."""
    there = chapters(course)
    for number, name in there.items():
        text = section("\n\n".join(course[name]), "Next")
        if number + 1 in there:
            if links(name, text)[:1] != [there[number + 1]]:
                yield f"{name}: Next does not lead to {there[number + 1]} first"
            if not re.search(rf"\bchapter {number + 1}\b", text, flags=re.I):
                yield f"{name}: Next does not name chapter {number + 1}"
        if ("last chapter" in text) != (number == max(there)):
            yield f"{name}: Next is wrong about the last chapter"
        needed = re.search(r"\*\*You need\*\*(.*)", course[name][0])
        for mentioned in mentioned_in(needed[1] if needed else ""):
            if mentioned >= number:
                yield f"{name}: needs chapter {mentioned}"


def exercise_links(course: Course) -> Iterator[str]:
    """A chapter links its assignment, if there is one, and the assignment its chapter."""
    given = assignments(course, "exercises")
    for number, name in chapters(course).items():
        text = section("\n\n".join(course[name]), "Exercises")
        found = [path for path in links(name, text) if path.startswith("exercises/")]
        assignment = given.get(number)
        if found != ([f"exercises/{assignment}/{assignment}.ipynb"] if assignment else []):
            yield f"{name}: Exercises leads to {found}"
        for folder in ("solutions", "exercises"):
            path = f"{folder}/{assignment}/{assignment}.ipynb"
            if path not in course:
                continue
            first = course[path][0]
            if not first.startswith(f"# Exercises {number}. "):
                yield f"{path}: the title does not begin with Exercises {number}"
            if links(path, first) != [name]:
                yield f"{path}: does not lead back to {name}"


def mentioned_in(text: str) -> list[int]:
    found = []
    for part in MENTION.findall(text):
        found += [int(number) for number in re.findall(r"\d+", part)]
    return found


def mentions(course: Course) -> Iterator[str]:
    """Whatever names a chapter or links a notebook, names and links one that there is."""
    there = chapters(course)
    for name, cells in course.items():
        text = "\n\n".join(cells)
        for number in mentioned_in(text):
            if number not in there:
                yield f"{name}: mentions chapter {number}"
        for words, link in LINK.findall(text):
            path = target(name, link)
            if "://" in link or not path.endswith((".ipynb", ".md")):
                continue
            if path not in course:
                yield f"{name}: links {link}, which is not there"
            number = CHAPTER.fullmatch(path)
            named = mentioned_in(words) or ([int(words)] if words.isdigit() else [])
            if number and named and named != [int(number[1])]:
                yield f"{name}: calls {link} {words!r}"


@functools.cache
def said(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return what a text promises and what it counts."""
    return PROMISES.findall(text), COUNT.findall(text)


def promises_and_counts(course: Course) -> Iterator[str]:
    """Nothing is promised, and who counts chapters, assignments or notebooks counts right."""
    given = assignments(course, "solutions")
    right = {"chapters": len(chapters(course)), "assignments": len(given)}
    right["notebooks"] = right["chapters"] + 2 * len(given)
    for name, cells in course.items():
        promised, counted = said("\n\n".join(cells))
        for words in promised:
            yield f"{name}: promises something: {words!r}"
        for count, noun in counted:
            number = NUMBERS.get(count.lower()) or int(count)
            if number != right[noun.split()[-1].lower()]:
                yield f"{name}: counts {count} {noun}"


# --- The course that is there, and others ---------------------------------------------------------

COURSE = read()
PATHS = chapters(COURSE)
NAMES = assignments(COURSE, "solutions")
every_chapter = pytest.mark.parametrize("number", PATHS)
every_assignment = pytest.mark.parametrize("number", NAMES)


def without(*lost: str) -> Course:
    return {name: cells for name, cells in COURSE.items() if name not in lost}


def both(assignment: str) -> list[str]:
    return [f"{folder}/{assignment}/{assignment}.ipynb" for folder in ("solutions", "exercises")]


def test_every_text_tells_the_way_that_is_on_disk():
    assert faults(COURSE) == []


def test_there_is_a_way_to_tell():
    assert PATHS and NAMES and set(NAMES) == set(PATHS) - {0}


@every_chapter
def test_a_renamed_chapter_is_noticed(number):
    new = PATHS[number].replace(".ipynb", "_again.ipynb")
    found = faults(without(PATHS[number]) | {new: COURSE[PATHS[number]]})
    assert any(fault.startswith("README.md") for fault in found)
    assert any(number == 0 or PATHS[0] in fault for fault in found)
    assert any(number == 0 or PATHS[number - 1] in fault for fault in found)
    assert any(number == 0 or both(NAMES[number])[0] in fault for fault in found)


@every_chapter
def test_a_chapter_with_another_title_is_noticed(number):
    first, *rest = COURSE[PATHS[number]]
    found = faults(COURSE | {PATHS[number]: [first.replace(". ", ". New: ", 1), *rest]})
    assert any(fault.startswith("README.md") for fault in found)
    assert any(fault.startswith(PATHS[0]) for fault in found)


@every_chapter
def test_a_lost_chapter_is_noticed(number):
    lost = [PATHS[number], *(both(NAMES[number]) if number in NAMES else [])]
    found = faults(without(*lost))
    assert any(fault.startswith("README.md") for fault in found)
    assert any(number == 0 or fault.startswith(PATHS[0]) for fault in found)


def test_an_added_chapter_is_noticed():
    number = len(PATHS)
    found = faults(COURSE | {f"chapters/{number:02}_more.ipynb": [f"# {number}. More"]})
    for page in ("README.md", PATHS[0], PATHS[number - 1], f"chapters/{number:02}_more.ipynb"):
        assert any(fault.startswith(page) for fault in found), page


@every_assignment
def test_a_renamed_assignment_is_noticed(number):
    old, new = both(NAMES[number]), both(NAMES[number] + "-again")
    found = faults(without(*old) | {new[n]: COURSE[old[n]] for n in (0, 1)})
    for page in ("README.md", PATHS[0], PATHS[number]):
        assert any(fault.startswith(page) for fault in found), page


@every_assignment
def test_a_lost_assignment_is_noticed(number):
    found = faults(without(*both(NAMES[number])))
    for page in ("README.md", PATHS[0], PATHS[number]):
        assert any(fault.startswith(page) for fault in found), page


def test_an_assignment_that_was_not_released_is_noticed():
    assert any(fault.startswith("solutions/ has") for fault in faults(without(both("01-plain")[1])))


def test_an_added_assignment_is_noticed():
    new = both("00-start")
    cells = [f"# Exercises 0. Start here\n\n[chapter 0](../../{PATHS[0]})"]
    found = faults(COURSE | dict.fromkeys(new, cells))
    for page in ("README.md", PATHS[0]):
        assert any(fault.startswith(page) for fault in found), page


@pytest.mark.parametrize(
    "text",
    [
        "Three chapters are in preparation.",
        "Exercises to chapter 4 are not there yet.",
        "The course has ten chapters.",
        "All 30 notebooks are run.",
        "More in chapter 23.",
        "As chapters 10, 11 and 12 show,",
        "See [chapter 4](chapters/05_bottleneck_layers.ipynb).",
        "See [the glossary](chapters/words.md).",
        "| term | 词 | meaning | [3](chapters/04_growth_rate.ipynb) |",
    ],
)
def test_a_stale_sentence_is_noticed(text):
    found = faults(COURSE | {"CONTRIBUTING.md": [*COURSE["CONTRIBUTING.md"], text]})
    assert found and all(fault.startswith("CONTRIBUTING.md: ") for fault in found)


@pytest.mark.parametrize(
    "text", ["All 12 chapters.", "Eleven assignments,", "chapters 1 to 3", "34 notebooks"]
)
def test_a_true_sentence_is_not(text):
    right = text.replace("12", str(len(PATHS))).replace("34", str(len(PATHS) + 2 * len(NAMES)))
    right = right.replace("Eleven", str(len(NAMES)))
    assert faults(COURSE | {"CONTRIBUTING.md": [right]}) == []
