"""The pages on which submissions are looked at: the Formgrader's, and the feedback.

nbgrader_config.py gives these functions to nbconvert as the filters of its templates, so that also
a copy that was never cleaned is shown clean; and a policy in the head of each page forbids what
still would get through. The policy names what the page itself brings:

- its own scripts, by a number that nobody knows before the page is made;
- MathJax, from where nbconvert loads it, with its extension Safe: written answers hold formulas.
  It needs ``unsafe-eval`` and styles of its own.

A script, a frame, a form, a picture from elsewhere and a request to elsewhere do not run.
"""

import base64
import hashlib
import re
import secrets
from typing import Any

from jinja2 import TemplateNotFound, pass_context

from safe_grading import cleaning

MATHJAX = "https://cdnjs.cloudflare.com"
SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script>", re.S)
CLICKS = re.compile(r'\sonclick="([^"]*)"')


@pass_context
def markdown2html(context: Any, source: str) -> str:
    """Return what a text in Markdown shows, clean."""
    cell = context.get("cell") or {}
    return cleaning.clean_html(cleaning.render(source, dict(cell.get("attachments", {}))))


def get_metadata(output: Any, key: str, mimetype: str | None = None) -> Any:
    """Return a size of a picture. nbconvert's own filter gives any text, which nothing quotes."""
    metadata = output.get("metadata", {}).get(mimetype or "", {})
    value = metadata.get(key) if isinstance(metadata, dict) else None
    return value if type(value) in (int, float) else None


@pass_context
def with_policy(context: Any, head: str) -> str:
    """Return the head of a page with a policy, for the scripts that nbgrader has in the page."""
    nonce = secrets.token_urlsafe(16)
    head = head.replace("<script", f'<script nonce="{nonce}"')
    formgrader = "base_url" in context.get("resources", {})
    own = "'self'" if formgrader else ""
    scripts = [f"'nonce-{nonce}'", "'strict-dynamic'", "'unsafe-eval'"]
    scripts += _in_the_body(context) if formgrader else []
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(scripts),
        "style-src": f"{own} 'unsafe-inline' {MATHJAX}",
        "font-src": f"{own} data: {MATHJAX}",
        "img-src": "data:",
        "connect-src": own or "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    text = "; ".join(f"{name} {sources.strip()}" for name, sources in policy.items())
    meta = f'<meta http-equiv="Content-Security-Policy" content="{text}">'
    return head.replace("<head>", f"<head>\n{meta}", 1)


def _in_the_body(context: Any) -> list[str]:
    """Return the sources that allow the scripts which the Formgrader has outside of its head."""
    environment = context.environment
    try:
        text = environment.loader.get_source(environment, "formgrade_macros.html.j2")[0]
    except TemplateNotFound:
        return []
    scripts = [body for attributes, body in SCRIPT.findall(text) if "src=" not in attributes]
    constant = [body for body in scripts if "{{" not in body] + CLICKS.findall(text)
    digests = (hashlib.sha256(body.encode()).digest() for body in constant)
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    return [*hashes, "'unsafe-hashes'"]
