"""Files in the user's cache folder: written whole or not at all, and never missed."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch


def cache_folder() -> Path:
    """Return the folder: under ``$XDG_CACHE_HOME`` if that is absolute, otherwise ``~/.cache``.

    Whoever has no home gets a path where nothing can be.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            root = Path(os.devnull)
    return root / "densenet_from_scratch"


def fingerprint_of(*parts: Any) -> str:
    """Return a short text that differs where the parts differ."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def read_facts(path: Path, key: str) -> dict[str, Any] | None:
    """Return what :func:`write_facts` wrote with this key; None if there is nothing of the kind."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and content.get("key") == key:
            return content
    return None


def write_facts(path: Path, key: str, facts: dict[str, Any]) -> None:
    """Write a small JSON file, if that is possible."""
    text = json.dumps({"key": key} | facts)
    _write(path, lambda file: file.write(text.encode()))


def read_tensors(path: Path, key: str) -> dict[str, Any] | None:
    """Return what :func:`write_tensors` wrote with this key; None if there is nothing of it."""
    with suppress(Exception):  # a damaged file can raise anything
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["key"] == key:
            return content
    return None


def write_tensors(path: Path, key: str, tensors: dict[str, Any]) -> None:
    """Write tensors by name into one file, if that is possible."""
    _write(path, lambda file: torch.save({"key": key} | tensors, file))


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    with suppress(OSError, RuntimeError):  # torch.save tells of a full disk by a RuntimeError
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.replace(scratch, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise
