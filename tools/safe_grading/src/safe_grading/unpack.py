"""Takes apart what was downloaded: archives, and archives in them, whatever they hold.

Nothing is written but plain files, under numbers, into one folder: so no name in an archive can
lead out of it, be too long, or meet another. What is not taken is left with a reason.
"""

import gzip
import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

LARGEST = 100 * 2**20  # bytes of one file
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".ipynb.gz")
OTHER_ARCHIVES = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
JUNK_FOLDERS = {"__macosx", ".ipynb_checkpoints", "__pycache__", ".git", ".venv", "node_modules"}
JUNK_FOLDERS |= {".idea", ".vscode", ".spotlight-v100", ".trashes", ".fseventsd", "$recycle.bin"}
JUNK_FILES = {".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", ".gitignore", ".localized"}
DAMAGE = (  # what reading an archive raises if it is not as it should be
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError),
    *(NotImplementedError, RuntimeError, MemoryError, LookupError),
)


@dataclass(frozen=True)
class Found:
    """A file: on the way to it archives and folders, the last is its name."""

    parts: tuple[str, ...]
    archives: tuple[int, ...]  # which of the parts are archives
    path: Path  # where its bytes are now
    time: float  # when it was changed last, as far as is known

    @property
    def shown(self) -> str:
        return "/".join(self.parts)


@dataclass
class Budget:
    """What one archive may hold; those inside one that was handed in share it."""

    size: int
    files: int
    depth: int  # of archives in archives


@dataclass
class Unpacker:
    """Collects the files below a folder, and those in archives there, into ``store``."""

    store: Path
    found: list[Found] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)  # what, and why

    def folder(self, top: Path) -> None:
        """Take all that is below a folder."""
        for root, folders, names in os.walk(top):
            folders.sort()
            place = Path(root).relative_to(top).parts
            for name in [name for name in folders if Path(root, name).is_symlink()]:
                self.leave((*place, name), "a link")
            for name in sorted(names):
                path, parts = Path(root, name), (*place, name)
                if path.is_symlink() or not path.is_file():
                    self.leave(parts, "a link, or no file")
                    continue
                try:
                    with path.open("rb") as file:
                        time = path.stat().st_mtime
                        size = path.stat().st_size
                        if is_archive(name):
                            self._open(parts, (), file, Budget(16 * 2**30, 200_000, 4))
                        else:
                            self._take(parts, (), file, size, time)
                except OSError as error:
                    self.leave(parts, f"cannot be read ({error.strerror or error})")

    def leave(self, parts: tuple[str, ...], why: str) -> None:
        """Note that something is left."""
        self.left.append(("/".join(parts), why))

    # --- One file --------------------------------------------------------------------------------

    def _take(
        self,
        parts: tuple[str, ...],
        archives: tuple[int, ...],
        source: IO[bytes] | gzip.GzipFile,
        size: int,
        time: float,
    ) -> Path | None:
        """Copy a file, if it is worth it."""
        parts = tuple(unicodedata.normalize("NFC", part) for part in parts)
        if why := why_junk(parts, size):
            self.leave(parts, why)
            return None
        path = self.store / f"{len(self.found):06}"
        with path.open("wb") as target:
            copied = 0
            while block := source.read(1 << 20):
                copied += len(block)
                if copied > LARGEST:  # whatever the archive said of its size
                    break
                target.write(block)
        if copied > LARGEST:
            path.unlink()
            self.leave(parts, f"larger than {LARGEST >> 20} MiB")
            return None
        self.found.append(Found(parts, archives, path, time))
        return path

    # --- Archives --------------------------------------------------------------------------------

    def _open(
        self, parts: tuple[str, ...], archives: tuple[int, ...], file: IO[bytes], budget: Budget
    ) -> None:
        """Take what an archive holds. Damage to one file leaves the others."""
        parts = tuple(unicodedata.normalize("NFC", part) for part in parts)
        if why := why_junk(parts, 1):
            return self.leave(parts, why)
        if budget.depth == 0:
            return self.leave(parts, "too many archives inside archives")
        archives = (*archives, len(parts) - 1)
        before = len(self.found) + len(self.left)
        try:
            if parts[-1].lower().endswith(".ipynb.gz"):
                name = parts[-1][: -len(".gz")]
                with gzip.open(file) as source:
                    self._take((*parts[:-1], name), archives[:-1], source, 1, 0.0)
            elif parts[-1].lower().endswith(".zip"):
                self._zip(parts, archives, file, budget)
            else:
                self._tar(parts, archives, file, budget)
        except DAMAGE as error:
            size = file.seek(0, os.SEEK_END)
            why = f"a damaged archive ({error})" if size else "an empty file, not an archive"
            return self.leave(parts, why)
        if len(self.found) + len(self.left) == before:
            self.leave(parts, "an empty archive")

    def _zip(
        self, parts: tuple[str, ...], archives: tuple[int, ...], file: IO[bytes], budget: Budget
    ) -> None:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)
            packed = sum(member.compress_size for member in members)
            if why := self._why_too_much(size, packed, len(members), budget):
                return self.leave(parts, why)
            for member in members:
                inside = _split(_zip_name(member))
                place = (*parts, *inside)
                if member.flag_bits & 1:
                    self.leave(place, "protected by a password")
                elif stat.S_ISLNK(member.external_attr >> 16):
                    self.leave(place, "a link")
                elif why := _why_outside(inside):
                    self.leave(place, why)
                else:
                    try:
                        with archive.open(member) as source:
                            time = _zip_time(member)
                            self._member(place, archives, source, member.file_size, time, budget)
                    except DAMAGE as error:
                        self.leave(place, f"damaged ({error})")

    def _tar(
        self, parts: tuple[str, ...], archives: tuple[int, ...], file: IO[bytes], budget: Budget
    ) -> None:
        packed = file.seek(0, os.SEEK_END)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                inside = _split(member.name)
                place = (*parts, *inside)
                if member.isdir():
                    continue
                if why := self._why_too_much(member.size, packed, 1, budget):
                    return self.leave(place, why)
                if not member.isfile():
                    self.leave(place, "a link, or no file")
                elif why := _why_outside(inside):
                    self.leave(place, why)
                elif source := archive.extractfile(member):
                    self._member(place, archives, source, member.size, member.mtime, budget)

    @staticmethod
    def _why_too_much(size: int, packed: int, files: int, budget: Budget) -> str:
        """Return why an archive is not unpacked; if it is, what it holds is taken off."""
        if size > 64 * 2**20 and size > 100 * packed:
            return f"unpacks to {size >> 20} MiB, more than a hundred times its size"
        if size > budget.size:
            return f"unpacks to {size >> 20} MiB; {budget.size >> 20} MiB are allowed"
        if files > budget.files:
            return f"holds {files} files; {budget.files} are allowed"
        budget.size -= size
        budget.files -= files
        return ""

    def _member(
        self,
        parts: tuple[str, ...],
        archives: tuple[int, ...],
        source: IO[bytes],
        size: int,
        time: float,
        budget: Budget,
    ) -> None:
        """Take a file of an archive, which may be an archive."""
        if size > LARGEST:
            return self.leave(parts, f"larger than {LARGEST >> 20} MiB")
        if not is_archive(parts[-1]) or why_junk(parts, 1):
            self._take(parts, archives, source, size, time)
            return
        if not size:
            return self.leave(parts, "an empty file, not an archive")
        path = self._take(parts, archives, source, size, time)
        if path is None:
            return
        self.found.pop()  # what it holds counts
        inner = path.rename(path.with_suffix(f".{len(self.left)}-{len(parts)}"))
        if len(archives) > 1:
            budget.depth -= 1
        else:  # what one student handed in
            budget = Budget(512 * 2**20, 5000, 3)
        with inner.open("rb") as file:
            self._open(parts, archives, file, budget)
        inner.unlink()
        if len(archives) > 1:
            budget.depth += 1


def is_archive(name: str) -> bool:
    """Return whether a file is to be taken apart."""
    return name.lower().endswith(ARCHIVES)


def without_ending(name: str) -> str:
    """Return the name of an archive without ``.zip`` or the like."""
    ending = max((e for e in ARCHIVES if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def why_junk(parts: tuple[str, ...], size: int) -> str:
    """Return why a file is nobody's work; nothing if it may be."""
    name = parts[-1].lower()
    for folder in parts[:-1]:
        if folder.lower() in JUNK_FOLDERS:
            return f"in {folder}, which a program keeps for itself"
    if name in JUNK_FILES or name.startswith(("._", "~$", ".~")):
        return "a program's own file"
    if name.endswith(OTHER_ARCHIVES) and not is_archive(name):
        return "an archive of a kind that is not unpacked here: unpack it by hand"
    return "" if size or not name.endswith(".ipynb") else "an empty file"


def _split(name: str) -> tuple[str, ...]:
    """Return the folders and the name in an archive; some programs write backslashes."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _why_outside(parts: tuple[str, ...]) -> str:
    if not parts or ".." in parts or parts[0].endswith(":"):
        return "its path leads out of the archive"
    return ""


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return a name as it was meant: macOS writes UTF-8 and does not say so."""
    name = getattr(member, "orig_filename", member.filename)
    if name.startswith("/"):
        return "../" + name
    if not member.flag_bits & 0x800:
        try:
            return name.encode("cp437").decode()
        except UnicodeError:
            pass
    return name


def _zip_time(member: zipfile.ZipInfo) -> float:
    try:
        return datetime(*member.date_time).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def files_of(top: Path, store: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the files below a folder and in archives there, and what was left and why."""
    unpacker = Unpacker(store)
    unpacker.folder(top)
    return unpacker.found, unpacker.left
