"""Every file of a class arrives: what platforms, programs and people make of names and archives.

Each case is what lies in ``archive/``, what must then be handed in, and what must be said of files
that are left. No kernel is started; ``tests/test_class.py`` grades what is collected.
"""

import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers import ROOT
from nbgrader.apps.zipcollectapp import ZipCollectApp

from safe_grading import unpack
from safe_grading.names import safe_name, student_name, why_not_a_folder, why_not_a_student

NAME = "01-plain"
NOTEBOOK = f"{NAME}.ipynb"
IDS = ["imports", "layer", "layer-test", "depth", "depth-test", "why"]
OTHER_IDS = ["imports", "block", "block-test", "sum", "sum-test", "why"]


def notebook(text: str = "", ids: list[str] = IDS, **metadata) -> bytes:
    """A notebook with graded cells; ``text`` tells it from others."""
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": name,
            "metadata": {"nbgrader": {"grade_id": name}},
            "outputs": [],
            "source": f"# {text}\n",
        }
        for name in ids
    ]
    cells = cells or [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": text}]
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False).encode()


def archive(*members: tuple, compression=zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of (name, content) or (name, content, hour of change)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content, *hour in members:
            info = zipfile.ZipInfo(name, (2026, 11, 1, *(hour or [12]), 0, 0))
            info.compress_type = compression
            file.writestr(info, content)
    return buffer.getvalue()


def tar(*members: tuple[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(info)
    return buffer.getvalue()


def with_flag(content: bytes, flag: int) -> bytes:
    """Set a flag of every member of a zip: 1 says that a password protects it."""
    content = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + offset] |= flag
            place = content.find(mark, place + 4)
    return bytes(content)


def linked() -> bytes:
    """A zip with a symbolic link in place of the notebook."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo(f"eve/{NOTEBOOK}")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
        file.writestr(f"ada/{NOTEBOOK}", notebook("ada"))
        file.writestr(f"ben/{NOTEBOOK}", notebook("ben"))
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """A zip in a zip in a zip."""
    content = archive((NOTEBOOK, notebook("deep")))
    for _ in range(depth):
        content = archive(("inner.zip", content))
    return content


def damaged(name: str) -> bytes:
    """A zip in which the content of one member is not what it was."""
    content = archive(
        (f"ada/{NOTEBOOK}", notebook("ada")),
        (name, notebook("something else" * 50)),
        (f"ben/{NOTEBOOK}", notebook("ben")),
        compression=zipfile.ZIP_STORED,
    )
    return content.replace(b"something else", b"something ruin", 3)


def utf8_without_saying_so(name: str, content: bytes) -> bytes:
    """A zip as macOS writes it: names in UTF-8, and no flag that says so."""
    packed = bytearray(archive((name, content)))
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        packed[packed.find(mark) + offset] &= ~0x08
    return bytes(packed)


@dataclass
class Case:
    """What is downloaded, what must be handed in (by the text in it), what must be said."""

    files: dict[str, bytes]
    expected: dict[str, str]
    left: dict[str, str] = field(default_factory=dict)  # patterns: what, and why
    says: str = ""


MOODLE = "{}_assignsubmission_file_"
ada, ben, cai = notebook("ada"), notebook("ben"), notebook("cai")
CLASS = {f"ada/{NOTEBOOK}": "ada", f"ben/{NOTEBOOK}": "ben"}
PLAIN = ((f"ada/{NOTEBOOK}", ada), (f"ben/{NOTEBOOK}", ben))

CASES: dict[str, Case] = {
    # Platforms.
    "moodle, folders": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Ada Lovelace_101')}/{NOTEBOOK}", ada),
                (f"{MOODLE.format('Ben Okri_102')}/{NOTEBOOK}", ben),
            )
        },
        {f"Ada Lovelace_101/{NOTEBOOK}": "ada", f"Ben Okri_102/{NOTEBOOK}": "ben"},
    ),
    "moodle, files": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Ada Lovelace_101')}{NOTEBOOK}", ada),
                (f"{MOODLE.format('Ben_102')}{NOTEBOOK}", ben),
                (f"{MOODLE.format('Ben_102')}helper.py", b"ben's"),
                ("Ben_102_assignsubmission_onlinetext_onlinetext.html", b"<p>hi"),
            )
        },
        {
            f"Ada Lovelace_101/{NOTEBOOK}": "ada",
            f"Ben_102/{NOTEBOOK}": "ben",
            "Ben_102/helper.py": "ben's",
        },
        {r".*onlinetext\.html": "typed into Moodle"},
    ),
    "moodle, two of one name": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Li Wei_7')}/{NOTEBOOK}", ada),
                (f"{MOODLE.format('Li Wei_8')}/{NOTEBOOK}", ben),
                (f"{MOODLE.format('Participant_9')}/{NOTEBOOK}", cai),
            )
        },
        {
            f"Li Wei_7/{NOTEBOOK}": "ada",
            f"Li Wei_8/{NOTEBOOK}": "ben",
            f"Participant_9/{NOTEBOOK}": "cai",
        },
    ),
    "moodle, unpacked": Case(
        {f"x/{MOODLE.format('Ada_1')}/{NOTEBOOK}": ada}, {f"Ada_1/{NOTEBOOK}": "ada"}
    ),
    "moodle, only a report": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Ada_1')}/{NOTEBOOK}", ada),
                (f"{MOODLE.format('Ben_2')}/report.pdf", b"%PDF"),
            )
        },
        {f"Ada_1/{NOTEBOOK}": "ada"},
        {r".*Ben_2.*report\.pdf": "Ben_2 handed in no notebook"},
        says=r"^no notebook of: Ben_2$",
    ),
    "canvas": Case(
        {
            "c.zip": archive(
                (f"lovelaceada_55_9001_{NOTEBOOK}", ada),
                (f"obrien_LATE_56_9002_{NAME}-1.ipynb", ben),
                (f"anon_x1Yz2_9003_{NOTEBOOK}", cai),
                ("obrien_56_9004_helper.py", b"ben's"),
                ("zed_57_text.html", b"<p>"),
            )
        },
        {
            f"lovelaceada_55/{NOTEBOOK}": "ada",
            f"obrien_56/{NOTEBOOK}": "ben",
            "obrien_56/helper.py": "ben's",
            f"anon_x1Yz2/{NOTEBOOK}": "cai",
        },
        {r".*zed_57_text\.html": "typed into Canvas"},
        says=r"obrien_56/01-plain\.ipynb \(late, says Canvas\)",
    ),
    "canvas, handed in again": Case(
        {
            "c.zip": archive(
                (f"ada_5_9003_{NAME}-2.ipynb", notebook("third"), 9),
                (f"ada_5_9001_{NOTEBOOK}", notebook("first"), 10),
                (f"ada_5_9002_{NAME}-1.ipynb", notebook("second"), 11),
            )
        },
        {f"ada_5/{NOTEBOOK}": "third"},
        {r".*9001.*": "another one later", r".*9002.*": "another one later"},
    ),
    "canvas, zips": Case(
        {
            "c.zip": archive(
                ("ada_5_91_work.zip", archive((f"x/{NOTEBOOK}", ada), ("x/d/a.csv", b"1"))),
                ("ben_6_92_work.zip", archive((NOTEBOOK, ben))),
            )
        },
        {f"ada_5/{NOTEBOOK}": "ada", "ada_5/d/a.csv": "1", f"ben_6/{NOTEBOOK}": "ben"},
    ),
    "blackboard": Case(
        {
            "c.zip": archive(
                (f"{NAME}_ada_attempt_2026-11-01-12-00-00_{NOTEBOOK}", ada),
                (f"{NAME}_ada_attempt_2026-11-01-12-00-00.txt", b"Name: Ada (ada)\n"),
                (f"{NAME}_o_brien_attempt_2026-11-02-12-00-00_{NOTEBOOK}", ben),
            )
        },
        {
            f"ada/{NOTEBOOK}": "ada",
            "ada/timestamp.txt": "2026-11-01 12:00:00",
            f"o_brien/{NOTEBOOK}": "ben",
            "o_brien/timestamp.txt": "2026-11-02 12:00:00",
        },
        {r".*00\.txt": "Blackboard's receipt"},
    ),
    "blackboard, handed in again": Case(
        {
            "c.zip": archive(
                (f"Week 1_a_b_attempt_2026-11-09-12-00-00_{NOTEBOOK}", notebook("new"), 1),
                ("Week 1_a_b_attempt_2026-11-09-12-00-00.txt", b"Name: A B (a_b)\r\n"),
                (f"Week 1_a_b_attempt_2026-11-01-12-00-00_{NOTEBOOK}", notebook("old"), 9),
                ("Week 1_a_b_attempt_2026-11-01-12-00-00_old.py", b"old"),
                ("Week 1_a_b_attempt_2026-11-09-12-00-00_new.py", b"new"),
            )
        },
        {
            f"a_b/{NOTEBOOK}": "new",
            "a_b/new.py": "new",
            "a_b/timestamp.txt": "2026-11-09 12:00:00",
        },
        {
            r".*11-01.*ipynb": "another one later",
            r".*old\.py": "something else later",
            r".*\.txt": "receipt",
        },
    ),
    # Folders, archives, files.
    "folders in an archive": Case({"c.zip": archive(*PLAIN)}, CLASS),
    "folders without an archive": Case(dict(PLAIN), CLASS),
    "folders in a folder": Case(
        {"c.zip": archive(*((f"class 1/{name}", content) for name, content in PLAIN))}, CLASS
    ),
    "folders of tar": Case({"c.tar.gz": tar(*PLAIN)}, CLASS),
    "a zip a student": Case(
        {
            "ada.zip": archive((f"homework/{NOTEBOOK}", ada)),
            "ben.zip": archive((f"stuff of mine/{NOTEBOOK}", ben), ("notes.txt", b"n")),
        },
        CLASS | {"ben/notes.txt": "n"},
    ),
    "one zip of one student": Case(
        {"ada.zip": archive((f"{NAME}/{NOTEBOOK}", ada))}, {f"ada/{NOTEBOOK}": "ada"}
    ),
    "zips in a zip": Case(
        {
            "c.zip": archive(
                ("ada.zip", archive(("work.zip", archive((NOTEBOOK, ada))))),
                ("ben.zip", archive((f"x/y/{NOTEBOOK}", ben))),
            )
        },
        CLASS,
    ),
    "each in another way": Case(
        {
            "c.zip": archive(
                (f"ada/{NOTEBOOK}", ada),
                (f"ben/homework 1/{NAME}_bugfix.ipynb", ben),
                ("cai/everything.zip", archive((f"course/exercises/{NAME}/{NOTEBOOK}", cai, 20))),
                ("dan/x.tar.gz", tar((NOTEBOOK, notebook("dan")))),
                (f"fay/fay_{NOTEBOOK}", notebook("fay")),
            )
        },
        CLASS | {f"{name}/{NOTEBOOK}": name for name in ("cai", "dan", "fay")},
    ),
    "only capitals differ": Case(
        {"c.zip": archive((f"Ada/{NOTEBOOK}", ada), (f"ada/{NOTEBOOK}", ben))},
        {f"Ada/{NOTEBOOK}": "ada", f"ada (2)/{NOTEBOOK}": "ben"},
    ),
    "loose files": Case(
        {f"ada_{NOTEBOOK}": ada, f"ben_{NOTEBOOK}": ben, "ben_helper.py": b"h"},
        CLASS | {"ben/helper.py": "h"},
    ),
    "loose files, name last": Case(
        {"c.zip": archive((f"{NAME}_ada.ipynb", ada), (f"{NAME} - ben.ipynb", ben))}, CLASS
    ),
    "loose files of numbers": Case(
        {f"20260001_{NOTEBOOK}": ada, f"20260002_{NOTEBOOK}": ben},
        {f"20260001/{NOTEBOOK}": "ada", f"20260002/{NOTEBOOK}": "ben"},
    ),
    "nobody's": Case(
        {NOTEBOOK: cai, "c.zip": archive(*PLAIN)}, CLASS, {r"01-plain\.ipynb": "whose it is"}
    ),
    "gzip": Case(
        {f"ada/{NOTEBOOK}.gz": gzip.compress(ada), f"ben/{NOTEBOOK}": ben},
        CLASS,
    ),
    # Names of people.
    "names": Case(
        {
            "c.zip": archive(
                *(
                    (f"{name}/{NOTEBOOK}", notebook(name))
                    for name in (
                        *("O'Brien", "Zoë Çelik", "李伟", "محمد علي", "प्रिया शर्मा", "Lee, Ann (2)"),
                        *("Smith [B]", "d'Été-Müller", "20260001", "x@y.edu", "நிலா", "Ольга"),
                    )
                )
            )
        },
        {
            f"{name}/{NOTEBOOK}": name
            for name in (
                *("O'Brien", "Zoë Çelik", "李伟", "محمد علي", "प्रिया शर्मा", "Lee, Ann (2)"),
                *("Smith (B)", "d'Été-Müller", "20260001", "x@y.edu", "நிலா", "Ольга"),
            )
        },
    ),
    "composed and decomposed": Case(
        {
            "c.zip": archive(
                (f"Zoe\u0308_1_assignsubmission_file_/{NOTEBOOK}", notebook("new"), 13),
                (f"Zo\u00eb_1_assignsubmission_file_/{NOTEBOOK}", notebook("old"), 9),
            )
        },
        {f"Zo\u00eb_1/{NOTEBOOK}": "new"},
        {r".*": "another one later"},
    ),
    "not for every machine": Case(
        {
            "c.zip": archive(
                (f"con/{NOTEBOOK}", ada),
                (f"a:b?/{NOTEBOOK}", ben),
                (f"e\u202ev\u0007e./{NOTEBOOK}", cai),
            )
        },
        {f"_con/{NOTEBOOK}": "ada", f"a_b_/{NOTEBOOK}": "ben", f"eve/{NOTEBOOK}": "cai"},
    ),
    "names as macOS writes them": Case(
        {"c.zip": utf8_without_saying_so(f"Zoë 李/{NOTEBOOK}", ada)},
        {f"Zoë 李/{NOTEBOOK}": "ada"},
    ),
    "backslashes": Case(
        {"c.zip": archive((f"ada\\{NOTEBOOK}", ada), (f"ben\\x\\{NOTEBOOK}", ben))}, CLASS
    ),
    # Names of notebooks.
    "renamed": Case(
        {
            "c.zip": archive(
                *(
                    (f"s{number:02}/{name}.ipynb", notebook(name))
                    for number, name in enumerate(
                        (
                            *("01-plain (1)", "01-plain-1", "Copy of 01-plain", "01-plain_final"),
                            *("my homework", "01_plain", "01-Plain - Copy", "Untitled", "01 plain"),
                            *("01-plain-Copy1", "01-plain_ada", "x"),
                        )
                    )
                )
            )
        },
        {
            f"s{number:02}/{NOTEBOOK}": name
            for number, name in enumerate(
                (
                    *("01-plain (1)", "01-plain-1", "Copy of 01-plain", "01-plain_final"),
                    *("my homework", "01_plain", "01-Plain - Copy", "Untitled", "01 plain"),
                    *("01-plain-Copy1", "01-plain_ada", "x"),
                )
            )
        },
    ),
    "without grade ids": Case(
        {
            f"ada/{NAME} (2).ipynb": notebook("ada", ids=[]),
            f"ben/{NOTEBOOK}": notebook("ben", ids=[]),
            "cai/mine.ipynb": notebook("cai", ids=[]),
        },
        CLASS,
        {r"cai/mine\.ipynb": "not this assignment's notebook"},
    ),
    "another assignment's": Case(
        {
            "c.zip": archive(
                *PLAIN,
                (f"cai/{NOTEBOOK}", notebook("cai", ids=OTHER_IDS)),
                ("ada/02-residual.ipynb", notebook("x", ids=OTHER_IDS)),
            )
        },
        CLASS,
        {
            r".*cai/01-plain\.ipynb": "a notebook of 02-residual",
            r".*ada/02-residual.ipynb": "a notebook of 02-residual",
        },
    ),
    "the newest counts": Case(
        {
            "c.zip": archive(
                (f"ada/{NOTEBOOK}", notebook("old"), 9),
                (f"ada/{NAME} (1).ipynb", notebook("new"), 15),
                (f"ben/old/{NAME}.ipynb", notebook("old"), 9),
                (f"ben/{NOTEBOOK}", notebook("new"), 10),
            )
        },
        {f"ada/{NOTEBOOK}": "new", f"ben/{NOTEBOOK}": "new"},
        {r".*/ada/01-plain\.ipynb": "another one later", r".*/old/.*": "another one later"},
        says=r"ada/01-plain\.ipynb \(the newest of 2\)",
    ),
    "two downloads": Case(
        {
            "1.zip": archive((f"Ada_1_assignsubmission_file_/{NOTEBOOK}", notebook("old"), 9)),
            "2.zip": archive((f"Ada_1_assignsubmission_file_/{NOTEBOOK}", notebook("new"), 10)),
        },
        {f"Ada_1/{NOTEBOOK}": "new"},
        {r"1\.zip.*": "another one later"},
    ),
    # What other programs save.
    "encodings": Case(
        {
            f"ada/{NOTEBOOK}": b"\xef\xbb\xbf" + ada.replace(b"}, ", b"},\r\n "),
            f"ben/{NOTEBOOK}": ben.decode().encode("utf-16"),
        },
        CLASS,
        says="read from another encoding",
    ),
    "version 3": Case(
        {
            f"ada/{NOTEBOOK}": json.dumps(
                {
                    "nbformat": 3,
                    "nbformat_minor": 0,
                    "metadata": {},
                    "worksheets": [{"cells": json.loads(ada)["cells"]}],
                }
            ).encode(),
            f"ben/{NOTEBOOK}": notebook("ben", colab={"name": "x"}, vscode={"a": 1}),
        },
        CLASS,
    ),
    "files beside it": Case(
        {
            "c.zip": archive(
                *PLAIN,
                ("ada/helper.py", b"h"),
                ("ada/data/a.csv", b"1"),
                ("ada/timestamp.txt", b"2000-01-01 00:00:00 UTC"),
                ("ben/Data/x.txt", b"x"),
                ("ben/data", b"y"),
            )
        },
        CLASS | {"ada/helper.py": "h", "ada/data/a.csv": "1", "ben/data": "y"},
        {r".*timestamp\.txt": "does not say when", r".*ben/Data/x\.txt": "there is another"},
    ),
    # What nobody has written.
    "junk": Case(
        {
            "c.zip": archive(
                *PLAIN,
                (f"__MACOSX/ada/._{NOTEBOOK}", b"\0\5\x16"),
                ("__MACOSX/._ada", b"\0"),
                (f"ada/.ipynb_checkpoints/{NAME}-checkpoint.ipynb", notebook("checkpoint"), 23),
                (f".ipynb_checkpoints/{NAME}-checkpoint.ipynb", notebook("checkpoint"), 23),
                ("ada/.DS_Store", b"x"),
                ("Thumbs.db", b"x"),
                ("ben/__pycache__/helper.cpython-311.pyc", b"x"),
                ("ben/empty.ipynb", b""),
                ("ben/__init__.py", b""),
            ),
            "loose.pdf": b"%PDF",
            ".DS_Store": b"x",
        },
        CLASS | {"ben/__init__.py": ""},
        {
            r".*__MACOSX.*": "in __MACOSX",
            r".*checkpoint\.ipynb": r"in \.ipynb_checkpoints",
            r".*\.DS_Store": "a program's own",
            r".*Thumbs\.db": "a program's own",
            r".*\.pyc": "in __pycache__",
            r".*empty\.ipynb": "an empty file",
            r"loose\.pdf": "no notebook of 01-plain is with it",
        },
    ),
    "no notebooks": Case(
        {
            "c.zip": archive(
                *PLAIN,
                (f"cai/{NOTEBOOK}", b"<html>Please sign in</html>"),
                (f"dan/{NOTEBOOK}", ada[:100]),
                (f"eve/{NOTEBOOK}", b""),
                (f"fay/{NOTEBOOK}", b"{}"),
                (f"gil/{NOTEBOOK}", b"[" * 100_000),
                (f"hal/{NOTEBOOK}", b'{"cells": {"x": [1]}, "worksheets": 3}'),
                ("ada/broken.ipynb", b"{"),
            )
        },
        CLASS | {f"hal/{NOTEBOOK}": '{"cells"'},
        {
            r".*cai.*": "cannot be read",
            r".*dan.*": "cannot be read",
            r".*eve.*": "an empty file",
            r".*fay.*": "not a notebook",
            r".*gil.*": "cannot be read",
            r".*broken.*": "cannot be read",
        },
    ),
    "damaged archives": Case(
        {
            "a.zip": b"",
            "b.zip": b"PK\x03\x04 nothing",
            "c.zip": archive(*PLAIN),
            "d.zip": archive(),
            "e.zip": archive(*PLAIN)[:-40],
            "f.rar": b"Rar!",
            "g.tar.gz": gzip.compress(b"x" * 999),
        },
        CLASS,
        {
            r"a\.zip": "an empty file",
            r"b\.zip": "a damaged archive",
            r"d\.zip": "an empty archive",
            r"e\.zip": "a damaged archive",
            r"f\.rar": "unpack it by hand",
            r"g\.tar\.gz": "a damaged archive",
        },
    ),
    "damaged archives of students": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Ada_1')}/work.zip", b"PK\x03\x04"),
                (f"{MOODLE.format('Ben_2')}/work.zip", archive((NOTEBOOK, ben))),
                (f"{MOODLE.format('Cai_3')}/work.zip", with_flag(archive((NOTEBOOK, cai)), 1)),
                (f"{MOODLE.format('Dan_4')}/work.zip", b""),
            )
        },
        {f"Ben_2/{NOTEBOOK}": "ben"},
        {r".*Ada_1.*": "damaged", r".*Cai_3.*": "a password", r".*Dan_4.*": "an empty file"},
    ),
    "a damaged member": Case({"c.zip": damaged(f"cai/{NOTEBOOK}")}, CLASS, {r".*cai.*": "damaged"}),
    "links": Case({"c.zip": linked()}, CLASS, {r".*eve.*": "a link"}),
    "links in tar": Case(
        {"c.tgz": tar(*PLAIN, link=f"eve/{NOTEBOOK}")}, CLASS, {r".*eve.*": "a link"}
    ),
    "paths that lead out": Case(
        {
            "c.zip": archive(
                *PLAIN,
                (f"../../../../submitted/eve/{NOTEBOOK}", cai),
                (f"/tmp/eve/{NOTEBOOK}", cai),
                (f"C:\\eve\\{NOTEBOOK}", cai),
            )
        },
        CLASS,
        {r".*eve.*": "leads out"},
    ),
    "bombs": Case(
        {
            "c.zip": archive(
                *PLAIN,
                ("cai/bomb.zip", archive(("x", bytes(70 * 2**20)))),
                ("ben/deep.zip", nested(6)),
            )
        },
        CLASS,
        {r".*bomb\.zip": "a hundred times", r".*deep\.zip.*": "too many archives inside"},
    ),
    "somebody hands in for another": Case(
        {
            "c.zip": archive(
                (f"{MOODLE.format('Ada_1')}/{NOTEBOOK}", ada, 9),
                (
                    f"{MOODLE.format('Eve_2')}/work.zip",
                    archive((f"{MOODLE.format('Ada_1')}/{NOTEBOOK}", notebook("eve"), 23)),
                ),
            )
        },
        {f"Ada_1/{NOTEBOOK}": "ada", f"Eve_2/{NOTEBOOK}": "eve"},
    ),
}


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A course of two released assignments; times of platforms are UTC's."""
    monkeypatch.setenv("TZ", "UTC")
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    for name, ids in ((NAME, IDS), ("02-residual", OTHER_IDS)):
        (tmp_path / f"exercises/{name}").mkdir(parents=True)
        (tmp_path / f"exercises/{name}/{name}.ipynb").write_bytes(notebook("", ids))
    return tmp_path


def collect(course: Path, files: dict[str, bytes], capsys, monkeypatch) -> list[str]:
    """Put files into archive/, run the command, and return what it says."""
    for name, content in files.items():
        path = course / f"grading/downloaded/{NAME}/archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(course)
    capsys.readouterr()
    ZipCollectApp.clear_instance()
    app = ZipCollectApp.instance()
    app.initialize([NAME])
    app.start()
    ZipCollectApp.clear_instance()
    return capsys.readouterr().out.splitlines()


def handed_in(course: Path) -> dict[str, str]:
    """What is submitted: the text in each file, by student and path."""
    found = {}
    for path in sorted((course / "grading/submitted").rglob("*")):
        if path.is_file():
            student, assignment, *rest = path.relative_to(course / "grading/submitted").parts
            assert assignment == NAME
            text = path.read_text()
            if match := re.search(r'"source": "# (.*?)\\n"|"source": "(\w+)"', text):
                text = match[1] or match[2]
            found["/".join((student, *rest))] = text
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_file_is_taken_or_left_with_a_reason(course, capsys, monkeypatch, name):
    case = CASES[name]
    said = collect(course, case.files, capsys, monkeypatch)
    found = handed_in(course)
    assert found.keys() == case.expected.keys(), "\n".join(said)
    for path, text in case.expected.items():
        assert found[path].replace("[B]", "(B)").startswith(text), path
    assert not re.search(r"\W(eve|EVE)\W", str(found)) or name.startswith(("somebody", "not for"))
    left = [re.fullmatch("left  (.*?): (.*)", line) for line in said if line.startswith("left")]
    for what, why in case.left.items():
        ours = [match for match in left if re.search(f"(^|/){what}$", match[1])]
        assert ours and all(re.search(why, match[2]) for match in ours), (what, said)
    for match in left:  # nothing else is left
        assert any(re.search(f"(^|/){what}$", match[1]) for what in case.left), match[0]
    took = [line for line in said if line.startswith("took  ")]
    assert len(took) == len([path for path in found if not path.endswith("/timestamp.txt")])
    assert any(line.startswith(f"{len(took)} files taken, {len(left)} left; ") for line in said)
    if case.says:
        assert re.search(case.says, "\n".join(said), re.M), said
    assert not any(path.is_symlink() for path in course.rglob("*"))


@pytest.mark.slow
def test_the_command_says_it_and_goes_on(course, tmp_path):
    """As README has it; what is collected again and is the same stays as it was."""
    place = course / f"grading/downloaded/{NAME}/archive"
    place.mkdir(parents=True)
    (place / "c.zip").write_bytes(archive(*PLAIN, ("ada/Ünsinn\u0007.pdf", b"%PDF")))
    (place / os.fsdecode(b"not utf-8 \xff.pdf")).write_bytes(b"x")

    def run() -> str:
        command = [sys.executable, "-m", "nbgrader", "zip_collect", NAME]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        options = {"capture_output": True, "check": False, "env": environment}
        done = subprocess.run(command, cwd=course, **options)
        assert done.returncode == 0, done.stderr.decode()
        assert b"Copying" not in done.stderr  # each file has its line, and no other
        return done.stdout.decode()

    assert "3 files taken, 1 left; 2 students, 0 of them as they were" in run()
    submitted = course / "grading/submitted"
    before = (submitted / f"ada/{NAME}/{NOTEBOOK}").stat().st_mtime_ns
    (place / "c2.zip").write_bytes(archive(("x/readme.txt", b"x"), (f"ben/{NOTEBOOK}", cai, 20)))
    (submitted / f"ben/{NAME}/old.py").write_text("gone")
    assert "2 students, 1 of them as they were" in run()
    assert (submitted / f"ada/{NAME}/{NOTEBOOK}").stat().st_mtime_ns == before
    assert handed_in(course) == {
        f"ada/{NOTEBOOK}": "ada",
        "ada/Ünsinn.pdf": "%PDF",
        f"ben/{NOTEBOOK}": "cai",
    }
    report = course / f"grading/downloaded/{NAME}/collected.txt"
    assert report.read_text().count("\n") == 7


def test_what_is_not_released_is_said(course, capsys, monkeypatch):
    shutil.rmtree(course / f"exercises/{NAME}")
    said = collect(course, {"c.zip": archive(*PLAIN)}, capsys, monkeypatch)
    assert said[0] == f"Release it first: nbgrader generate_assignment --force {NAME}"
    assert not (course / "grading/submitted").exists()


def test_a_file_is_cut_at_its_limit(course, capsys, monkeypatch):
    monkeypatch.setattr(unpack, "LARGEST", 5000)
    big = notebook("x" * 9000)
    files = {"c.zip": archive(*PLAIN, (f"cai/{NOTEBOOK}", big)), f"dan/{NOTEBOOK}": big}
    said = collect(course, files, capsys, monkeypatch)
    assert sum("larger than" in line for line in said) == 2
    assert handed_in(course) == CLASS


@pytest.mark.parametrize(
    "name", ["ada", "O'Brien", "प्रिया", "Lee, Ann", "Smith [B]", "李伟", "محمد", "a_b.c-d@e", "x+y"]
)
def test_names_of_students_are_folders(name):
    assert why_not_a_folder(name) == "" and safe_name(name) == name
    assert bool(why_not_a_student(name)) == ("[" in name)
    assert student_name(name) == name.replace("[", "(").replace("]", ")")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "a.", " a", "a ", "a/b", "a\\b", "a:b", "a*", "CON", "nul.txt"),
        *("a\nb", "a\u202eb", "\udcff", "x" * 256, "Com1", "a|b", "<a>", 'a"b'),
    ],
)
def test_other_names_are_refused_and_made_fit(name):
    assert why_not_a_folder(name)
    made = safe_name(name)
    assert why_not_a_folder(made) == "" and made == unicodedata.normalize("NFC", made)


def test_times_are_what_nbgrader_reads(course, capsys, monkeypatch):
    """The platform's clock is taken to be this machine's; nbgrader wants UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    name = f"{NAME}_ada_attempt_2026-11-02-12-00-00_{NOTEBOOK}"
    collect(course, {"c.zip": archive((name, ada))}, capsys, monkeypatch)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    stamp = course / f"grading/submitted/ada/{NAME}/timestamp.txt"
    assert datetime.fromisoformat(stamp.read_text()).replace(tzinfo=UTC).hour == 17
