"""Keeps what a student hands in from running in the browser of whoever looks at it.

What may stay is listed, and all else goes: bleach, on which nbconvert stands too, drops every other
element and attribute. Links cannot be clicked, because a link may lead into the lecturer's own
Jupyter; and pictures come with the page, because asking for one is a request too.

``findings`` counts what an honest answer does not have. It decides only what the lecturer is told,
never what stays.
"""

import base64
import binascii
import html
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from bleach import html5lib_shim
from bleach.css_sanitizer import CSSSanitizer
from bleach.sanitizer import Cleaner
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath

TAGS = frozenset(
    "a abbr b blockquote br caption center code col colgroup dd del details div dl dt em "
    "figcaption figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span "
    "strong sub summary sup table tbody td tfoot th thead tr tt u ul var".split()
)
SIZE = re.compile(r"\d{1,5}(\.\d{1,3})?(px|em|%)?")
ATTRIBUTES = {
    "align": re.compile(r"left|right|center|justify"),
    "border": SIZE,
    "class": re.compile(r"((dataframe|highlight|language-\w+|[a-z]{1,2}\d?)( |$))+"),
    "colspan": SIZE,
    "height": SIZE,
    "open": re.compile(""),
    "rowspan": SIZE,
    "scope": re.compile(r"row|col"),
    "start": SIZE,
    "valign": re.compile(r"top|middle|bottom|baseline"),
    "width": SIZE,
}
IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
ADDRESS = re.compile(r"(https?://|mailto:)\S+", re.I)
LOADS = re.compile(r"url|image|src|expression|[@\\]", re.I)  # what a style may not say
# Elements of which not even the text is worth keeping.
SILENT = re.compile(
    r"<(script|style|template|noscript|svg|math|iframe|object|title)\b.*?</\1\s*>", re.I | re.S
)
# MathJax's macros that make links, load code, or give an element a style or a name.
MACROS = re.compile(
    r"\\(href|url|html[A-Za-z]*|class|cssId|style|data|require|includegraphics|mmlToken)(?![A-Za-z])"
)
USED = re.compile(MACROS.pattern + r"(?=(\s|%[^\n]*\n)*[{\[])")

BOX = re.compile(r'<input class="task-list-item-checkbox" type="checkbox"[^>]*>')  # of a task list
PICTURES = ("image/png", "image/jpeg", "image/gif")
OSC = re.compile(r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?")  # among them links
CSI = re.compile(r"(?:\x1b\[|\x9b)[0-9:;<=>?]*[ -/]*[@-ln-~]")  # all but colours
CONTROLS = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[\d;]*m)")


# --- HTML ----------------------------------------------------------------------------------------


def _may_stay(tag: str, name: str, value: str) -> bool:
    match name:
        case "alt" | "title":
            return True
        case "style":
            return not LOADS.search(value)
        case "href":
            return tag == "a" and bool(ADDRESS.fullmatch(value))
        case "src":
            return tag == "img" and bool(IMAGE.fullmatch(value))
    return name in ATTRIBUTES and bool(ATTRIBUTES[name].fullmatch(value))


class _AsText(html5lib_shim.Filter):
    """Writes out where a link leads, and what a picture shows that does not come with the page."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        addresses: list[str] = []
        text = ""
        for token in super().__iter__():
            name, kind = token.get("name"), token["type"]
            attributes = token.get("data")
            if kind in ("StartTag", "EmptyTag") and name == "a":
                addresses.append(html.unescape(attributes.get((None, "href"), "")))
                text = ""
            elif kind == "EndTag" and name == "a":
                address = addresses.pop() if addresses else ""
                if address and address.removeprefix("mailto:") != html.unescape(text):
                    yield {"type": "Characters", "data": f" ({address})"}
            elif kind in ("StartTag", "EmptyTag") and name == "img":
                if attributes.get((None, "src")):
                    yield token
                else:
                    shown = html.unescape(attributes.get((None, "alt")) or "not shown")
                    yield {"type": "Characters", "data": f"[picture: {shown}]"}
            else:
                if kind in ("Characters", "SpaceCharacters"):
                    text += token["data"]
                elif kind == "Entity":
                    text += f"&{name};"
                yield token


def _cleaner() -> Cleaner:
    return Cleaner(
        tags=TAGS,
        attributes=_may_stay,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSSSanitizer(),
        filters=[_AsText],
    )


CLEANER = _cleaner()


def clean_html(text: Any) -> str:
    """Return HTML in which nothing can run, load, or be clicked."""
    cleaned = CLEANER.clean(SILENT.sub("", text if isinstance(text, str) else str(text)))
    # A macro may be written with entities; so write no entity but those that HTML needs.
    cleaned = re.sub(r"&#?\w+;", lambda one: html.escape(html.unescape(one[0])), cleaned)
    return MACROS.sub("\\\\\u200c\\1", cleaned)  # it looks the same, and is no macro


# --- Markdown ------------------------------------------------------------------------------------


def render(source: str, attachments: dict[str, Any]) -> str:
    """Return the HTML of a text in Markdown as nbconvert makes it."""
    renderer = IPythonRenderer(escape=False, attachments=attachments, exclude_anchor_links=True)
    try:
        text = MarkdownWithMath(renderer=renderer).render(source)
    except InvalidNotebook:  # a picture that was not handed in
        text = MarkdownWithMath(renderer=renderer).render(source.replace("attachment:", "missing:"))
    return BOX.sub(lambda one: "☑ " if "checked" in one[0] else "☐ ", text)


def as_code(text: str) -> str:
    """Return Markdown that shows a text as it is."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def clean_markdown(source: str, attachments: dict[str, Any]) -> tuple[str, Counter[str]]:
    """Return a text in Markdown in which nothing can run, and what was found in it.

    Where something was, the text is shown as it was handed in, as code: so it can still be read.
    """
    found = findings(render(source, attachments))
    return (as_code(source) if found else source), found


# --- What the lecturer is told -------------------------------------------------------------------

ELEMENTS = {
    "script": "script",
    "iframe": "frame",
    "frame": "frame",
    "portal": "frame",
    "object": "embedded object",
    "embed": "embedded object",
    "applet": "embedded object",
    "form": "form",
    "button": "form",
    "textarea": "form",
    "select": "form",
    "base": "change of the page",
    "meta": "change of the page",
    "link": "change of the page",
    "template": "change of the page",
    "foreignobject": "active picture",
    "animate": "active picture",
    "set": "active picture",
    "math": "formula in MathML",
}
URLS = ("href", "src", "action", "formaction", "data", "xlink:href", "background", "poster", "to")
SCHEME = re.compile(r"(javascript|vbscript|data):", re.I)


class _Finder(HTMLParser):
    """Counts what an honest answer does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ELEMENTS:
            self.found[ELEMENTS[tag]] += 1
        if tag in ("style", "pre", "code"):
            self.inside.append(tag)
        for name, value in attrs:
            value = value or ""
            address = re.sub(r"[\x00-\x20\xa0]", "", value)
            if name.startswith("on"):
                self.found["event handler"] += 1
            elif name == "style" and re.search(r"url\(|expression|@import", value, re.I):
                self.found["style that loads something"] += 1
            elif name == "srcdoc":
                self.found["frame"] += 1
            elif name in URLS and SCHEME.match(address.removeprefix("files/")):
                if not (tag == "img" and address.lower().startswith("data:image/")):
                    self.found["link that runs code"] += 1
            elif tag == "use" and not address.startswith("#"):
                self.found["active picture"] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if "style" in self.inside:
            if re.search(r"url\(|expression|@import", data, re.I):
                self.found["style that loads something"] += 1
        elif not self.inside:  # MathJax leaves code alone
            self.found["LaTeX macro that links or loads"] += len(USED.findall(data))


def findings(text: str) -> Counter[str]:
    """Count in HTML what an honest answer does not have."""
    finder = _Finder()
    finder.feed(text)
    finder.close()
    return +finder.found


def in_words(found: Counter[str]) -> str:
    """Return what was found as the lecturer is told."""

    def one(name: str, number: int) -> str:
        article = "an" if name[0] in "aeiou" else "a"
        if number == 1:
            return f"{article} {name}"
        first, *rest = name.split(" ")
        if first in ("event", "embedded", "active"):
            return f"{number} {name}s"
        plural = {"change": "changes", "formula": "formulas", "style": "styles", "link": "links"}
        if first == "LaTeX":
            return f"{number} LaTeX macros that link or load"
        phrase = " ".join([plural.get(first, f"{first}s"), *rest])
        return f"{number} " + phrase.replace("that loads", "that load").replace("runs", "run")

    words = [one(name, number) for name, number in found.items()]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# --- Text and pictures ---------------------------------------------------------------------------


def clean_text(text: Any) -> str:
    """Return a text without what steers a terminal, but with its colours."""
    text = "".join(map(str, text)) if isinstance(text, list) else str(text)
    return CONTROLS.sub("", CSI.sub("", OSC.sub("", text)))


def is_base64(text: Any) -> bool:
    """Return whether a text is base64, as pictures are in a notebook."""
    try:
        return isinstance(text, str) and bool(
            base64.b64decode("".join(text.split()), validate=True)
        )
    except (binascii.Error, ValueError):
        return False


SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
SHAPES = frozenset(
    "svg g defs path rect circle ellipse line polyline polygon text tspan title desc use clipPath "
    "linearGradient radialGradient stop image marker symbol pattern mask style".split()
)


def clean_svg(text: Any) -> str:
    """Return a drawing of shapes and text only; nothing if it cannot be read."""
    if not isinstance(text, str) or "<!ENTITY" in text.upper():
        return ""
    try:
        root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>\[]*>", "", text))
    except (ElementTree.ParseError, ValueError):
        return ""
    if root.tag != f"{SVG}svg":
        return ""
    _clean_shape(root)
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", XLINK[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _clean_shape(shape: ElementTree.Element) -> None:
    for name, value in list(shape.attrib.items()):
        address = name in ("href", f"{XLINK}href")
        if address:
            stays = value.startswith("#") or bool(IMAGE.fullmatch(value))
        else:
            local = re.sub(r"url\(\s*#[\w-]+\s*\)", "", value)
            stays = not name.lower().startswith("on") and not LOADS.search(local)
            stays = stays and (name.isidentifier() or re.fullmatch(r"[a-z-]+", name) is not None)
        if not stays:
            del shape.attrib[name]
    for child in list(shape):
        known = isinstance(child.tag, str) and child.tag.removeprefix(SVG) in SHAPES
        known = known and child.tag.startswith(SVG)
        if not known or (child.tag == f"{SVG}style" and LOADS.search(child.text or "")):
            shape.remove(child)
        else:
            _clean_shape(child)
