"""Names of students and files: what may be the name of a folder on Linux, macOS and Windows."""

import re
import unicodedata

LONGEST = 200  # bytes; file systems take 255, and a log's name is a little longer
FORBIDDEN = '<>:"/\\|?*'  # on Windows
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.I)  # likewise
JOINERS = "\u200c\u200d"  # which some scripts need inside a word


def is_hidden(character: str) -> bool:
    """Return whether a character cannot be seen: a control, or one that turns the text around."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS


def why_not_a_folder(name: str) -> str:
    """Return why a name is not one for a folder everywhere; nothing if it is."""
    if bad := next((c for c in name if c in FORBIDDEN or is_hidden(c)), ""):
        shown = bad if bad in FORBIDDEN else f"U+{ord(bad):04X}"
        return f"its name has the character {shown}, which is not one for a folder everywhere"
    if not name or name[0] in ". " or name[-1] in ". ":
        return "its name begins or ends with a dot or a space, or is empty"
    if RESERVED.fullmatch(name):
        return "its name is one that Windows keeps for itself"
    if len(name.encode()) > LONGEST:
        return f"its name is longer than {LONGEST} bytes"
    return ""


def safe_name(name: str) -> str:
    """Return a name made fit for a folder or file everywhere, in composed characters (NFC)."""
    name = unicodedata.normalize("NFC", name)
    name = "".join("_" if c in FORBIDDEN else c for c in name if not is_hidden(c))
    name = re.sub(r"\s+", " ", name).strip(" .")
    if RESERVED.fullmatch(name):
        name = f"_{name}"
    while len(name.encode()) > LONGEST:
        name = name[:-1]
    return name.strip(" .") or "_"


def why_not_a_student(name: str) -> str:
    """Return why a folder cannot be a student's; nothing if it can."""
    if why := why_not_a_folder(name):
        return why
    return "nbgrader reads the [ in its name as a pattern" if "[" in name else ""


def student_name(name: str) -> str:
    """Return a name made fit for a student's folder."""
    return safe_name(name.replace("[", "(").replace("]", ")"))


def printable(text: str, length: int = 300) -> str:
    """Return a text from elsewhere as one line that any terminal may show."""
    return "".join(
        c.encode("unicode_escape").decode() if is_hidden(c) else c for c in text[:length]
    )
