"""Numbers quoted from another chapter are those that its committed outputs show.

A number is computed in one place, and its output is committed there. Where another notebook or the
README repeats it, the sentence is rebuilt here from that output, and must stand in the text word
for word. Training gives other numbers on another machine, so a chapter that was run again makes
these tests fail until the sentences that quote it follow.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
from helpers import ROOT, text_of
from helpers import notebook as read


@cache
def notebook(name: str) -> Path:
    """ "03" is a chapter, "exercise 03" the assignment to it."""
    kind, _, number = name.rpartition(" ")
    [path] = ROOT.glob(f"solutions/{number}-*/*.ipynb" if kind else f"chapters/{number}_*.ipynb")
    return path


@cache
def outputs(name: str) -> str:
    """All that a notebook's committed outputs say, captions of figures included."""
    said = []
    for cell in read(notebook(name)).cells:
        for output in cell.get("outputs", []):
            said.append(output.get("text", ""))
            said.append(output.get("data", {}).get("text/plain", ""))
            said.append(output.get("metadata", {}).get("image/png", {}).get("alt", ""))
    return "\n".join(said)


def words(text: str) -> str:
    return " ".join(text.split())


@cache
def prose(name: str) -> str:
    if name == "README":
        return words((ROOT / "README.md").read_text())
    return words(text_of(notebook(name)))


def found(pattern: str, name: str) -> list[str]:
    """The groups of the only match of a pattern in a notebook's outputs."""
    [match] = set(re.findall(pattern, outputs(name)))
    return [match] if isinstance(match, str) else list(match)


def numbers(text: str) -> list[Decimal]:
    return [Decimal(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


def plain_networks() -> list[str]:
    """Exercise 1 shows chapter 1's table: a row a depth, lowest and highest of the seeds."""
    rows = re.findall(r"^plain-(\d+) +\d +([\d.]+) +[\d.]+ +([\d.]+)$", outputs("01"), flags=re.M)
    sentences = []
    for depth in ("6", "20", "50"):
        [count] = found(rf"plain-{depth} +[\d,]+ +([\d,]+)\n", "01")
        losses, accuracies = ([Decimal(row[i]) for row in rows if row[0] == depth] for i in (1, 2))
        assert len(losses) == 3
        ends = f"{min(losses)}–{max(losses)} | {min(accuracies)}–{max(accuracies)}"
        sentences.append(f"| {depth} | {count} | {ends} |")
    return sentences


def order_of_depths() -> list[str]:
    rows = re.findall(r"^plain-(\d+) +\d +([\d.]+)", outputs("01"), flags=re.M)
    losses = [[float(loss) for depth, loss in rows if depth == d] for d in ("6", "20", "50")]
    assert max(losses[0]) < min(losses[1]) and max(losses[1]) < min(losses[2])
    return ["in chapter 1 all seeds agreed on the order of the three depths"]


def likeness_lost() -> list[str]:
    """Chapter 2 draws the line again, and its caption has the number."""
    share, chance = found(r"At layer 20 it is ([\d.]+) in the plain .*Chance is (\d\.\d+)", "02")
    assert float(share) < 2 * float(chance)
    return ["after some twenty random layers, images of one class were no more alike"]


def dense_network_of_chapter_3() -> list[str]:
    [handed_on] = found(r"classifier reads (\d+) numbers", "03")
    [made] = set(re.findall(r"and makes \(2, (\d+), 8, 8\)", outputs("03")))
    [residual] = found(r"residual +\| +([\d,]+) \| +[\d.]+ \| +[\d.]+ [\d.]+", "03")
    return [
        f"In chapter 3 every dense layer made {made} maps",
        f"The dense network of chapter 3 ($k = {made}$, $k_0 = 16$, 20 layers) hands on "
        f"{handed_on} maps",
        f"At the parameters of residual-20 with 16 maps ({residual}), the dense network hands on "
        f"{handed_on}.",
    ]


def table_2() -> list[str]:
    """Chapter 4's rows of the authors' table are those of chapter 8's."""
    sentences = []
    for depth, k in ((40, 12), (100, 12), (100, 24)):
        row = rf"\({depth},{k}\) +\| +([\d,]+) \| ([\d.]+) \| ([\d.]+) \|"
        count, c10, c10_plus = next(iter(re.findall(rf"^{row}", outputs("08"), flags=re.M)))
        millions = f"{int(count.replace(',', '')) / 1e6:.1f} M"
        sentences.append(f"| DenseNet ($L={depth}$, $k={k}$) | {millions} | {c10} | {c10_plus} |")
    return sentences


def widths_of_blocks() -> list[str]:
    pairs = found(r"half of them: +\[\((\d+), \d+\), \((\d+), \d+\), \((\d+), \d+\)\]", "06")
    first, second, third = pairs
    return [f"how many maps enter each block: {first}, {second} and {third}."]


def accuracies_of_two_growth_rates() -> list[str]:
    each = {
        k: found(rf"\n *{k} \| +[\d,]+ \| +[\d.]+ \| +([\d.]+ [\d.]+ [\d.]+) \|", "04")[0].split()
        for k in (8, 12)
    }
    means = {k: mean(map(Decimal, values)) for k, values in each.items()}
    gain, *spreads = found(r"from k = 8 to 12: \+([\d.]+), spread ([\d.]+) and ([\d.]+)", "04")
    narrow, wide = (
        found(rf"k = +{k}, L = +{L}: ([\d,]+) parameters", "04")[0] for k, L in ((4, 24), (12, 8))
    )
    return [
        f"$k = 8$: {', '.join(each[8])}; $k = 12$: {', '.join(each[12])}.",
        f"The means are {means[8]:.3f} and {means[12]:.3f}, a difference of {gain}",
        f"The seeds of one $k$ differ by {spreads[0]} and {spreads[1]}",
        f"counted, they are {narrow} and {wide}.",
    ]


def densenet_bc() -> list[str]:
    [count] = found(r"DenseNet-BC \(L=100, k=12\) +([\d,]+) ", "07")
    return [f"for colour images and ten classes, has {count}."]


def where_weights_sit() -> list[str]:
    """From the caption of chapter 7's two bar charts."""
    weights = found(r"(\d+) % in block 4, \d+ % in the classifier, (\d+) % in block 1\.", "07")
    work = found(
        r"(\d+) % in block 1, \d+ % in block 2, \d+ % in block 3, (\d+) % in block 4", "07"
    )
    return [
        f"Block 1 has {weights[1]} % of the parameters and does {work[0]} % of the "
        f"multiply-accumulates; block 4 has {weights[0]} % of the parameters and does {work[1]} %."
    ]


def errors_of_chapter_8(share: str) -> list[str]:
    """Errors of residual and dense, their difference by seed, and that in % of residual's error."""
    part = rf"{share}% of the images\n +residual +([\d.]+ ± [\d.]+) .*\n +dense +([\d.]+ ± [\d.]+) "
    part += r".*\n +residual minus dense: \+([\d.]+ ± [\d.]+) .*\n +relative.*: \+(\d+)%"
    return found(part, "08")


def comparison_of_chapter_8() -> list[str]:
    few, every = errors_of_chapter_8("10"), errors_of_chapter_8("100")
    [shallow] = found(r"residual, depth 8 +([\d.]+ ± [\d.]+) ", "08")
    residual, dense = (numbers(error)[0] for error in few[:2])
    gain, small_gain = (numbers(difference)[0] for difference in (few[2], every[2]))
    return [
        f"| 10 % | {few[0]} | {shallow} | {few[1]} | {few[2]} |",
        f"| 100 % | {every[0]} | | {every[1]} | {every[2]} |",
        f"The advantage grows from {small_gain:.1f} to {gain:.1f} points",
        f"From {residual} to {dense} are {residual - dense} points. Which share of {residual} is",
        f"comes out at {numbers(shallow)[0]},",
        rf"${gain:.1f} / {residual} \approx {few[3]}\,\%$ at a tenth of the images, "
        rf"${small_gain:.1f} / {numbers(every[0])[0]} \approx {every[3]}\,\%$ at all of them.",
        f"{few[3]} % and {every[3]} %, which the intervals do not tell apart",
    ]


def answer_about_chapter_8() -> list[str]:
    """What the model answer says about the table in words holds of its numbers."""
    few, every = errors_of_chapter_8("10"), errors_of_chapter_8("100")
    (residual, residual_half), (dense, dense_half), (gain, half) = map(numbers, few[:3])
    shallow, shallow_half = numbers(found(r"residual, depth 8 +([\d.]+ ± [\d.]+) ", "08")[0])
    assert residual - residual_half < dense + dense_half  # the bars overlap, and yet
    assert gain > half  # the difference is told apart from 0
    assert shallow - shallow_half < dense < shallow  # the other peer's bar holds dense's mean
    all_residual, (all_gain, all_half) = numbers(every[0])[0], numbers(every[2])
    same_share = all_residual * int(few[3]) / 100
    assert all_gain - all_half < same_share < all_gain + all_half
    return [
        f"from {gain - half:.1f} to {gain + half:.1f} it does not hold 0",
        f"goes from {all_gain - all_half} to {all_gain + all_half} points, and {few[3]} % of "
        f"{all_residual} lie within it",
    ]


def rank_correlations() -> list[str]:
    """Exercise 9 says "about": a number between those of the seeds."""
    one = r"(\+[\d.]+, \+[\d.]+, \+[\d.]+)\n"
    whole, percents = (
        numbers(found(name + one, "09")[0])
        for name in (r"\n\|w\| +: ", r"\n\|w\|, percent of the reader's strongest +: ")
    )
    pattern = r"about \$\+([\d.]+)\$ over all connections, and about \$\+([\d.]+)\$ over the perc"
    [quoted] = re.findall(pattern, prose("exercise 09"))
    for number, seeds in zip(map(Decimal, quoted), (whole, percents), strict=True):
        assert min(seeds) <= number <= max(seeds)
    return []


def last_layer_of_the_first_block() -> list[str]:
    read, extra = found(r"\n(204) \| +\d+, +\d+ \| +(\d+)\n", "05")
    return [f"$m = {read}$ maps are read", f"Plain it stores {2 * int(read) + int(extra)} maps."]


def a_twentieth() -> list[str]:
    [share] = found(r"shared-recompute +\| +\d+ \| +([\d.]+) \|", "10")
    assert 0.045 <= float(share) < 0.055, share
    return ["how to store a twentieth of it, exactly"]


# Who quotes, and what rebuilds the sentences that must stand there.
QUOTED: list[tuple[str, Callable[[], list[str]]]] = [
    ("exercise 01", plain_networks),
    ("02", order_of_depths),
    ("02", likeness_lost),
    ("04", dense_network_of_chapter_3),
    ("04", table_2),
    ("05", widths_of_blocks),
    ("exercise 04", accuracies_of_two_growth_rates),
    ("exercise 07", densenet_bc),
    ("exercise 07", where_weights_sit),
    ("exercise 08", comparison_of_chapter_8),
    ("exercise 08", answer_about_chapter_8),
    ("exercise 09", rank_correlations),
    ("exercise 10", last_layer_of_the_first_block),
    ("README", a_twentieth),
]


@pytest.mark.parametrize(
    ("quotes", "rebuild"), QUOTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_what_is_quoted_is_what_was_computed(quotes, rebuild):
    for sentence in rebuild():
        assert words(sentence) in prose(quotes)


EVERYWHERE = [
    *(path.name[:2] for path in sorted((ROOT / "chapters").glob("*.ipynb"))),
    *(f"exercise {path.name[:2]}" for path in sorted((ROOT / "solutions").glob("*/*.ipynb"))),
    "README",
]
QUOTATION = (
    r"(?:run|table|figure|output|numbers?|network) of chapter \d|chapter \d+'s (?:run|table)"
)
QUOTATION += r"|[Ii]n chapter \d+ |as in chapter \d|[Cc]hapter \d+ (?:gave|found|measured|printed)"


# The sentences with a number that name another chapter as its source: each is tested above.
KNOWN = [
    "In chapter 3 every dense layer made 4 maps",
    "The dense network of chapter 3",
    "in chapter 3 three seeds named no winner",  # no number from there
    "one run of chapter 1 (8 epochs, seeds 0, 1 and 2",
    "One run of chapter 4 gave these test accuracies",
    "In one run of chapter 9 the rank correlation",
    "the first block of DenseNet-BC (100, 12), chapter 10's table",
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_quotation_is_known(name):
    """Whoever quotes another chapter's number adds it to QUOTED, and its sentence to KNOWN."""
    for sentence in re.split(r"(?<=[.!?:])\s", prose(name)):
        rest = re.sub(r"[Cc]hapters? \d+|\$[^$.]*\$|\(\.\./[^)]*\)", "", sentence)
        if re.search(QUOTATION, sentence) and re.search(r"\d", rest):
            assert any(known in sentence for known in KNOWN), sentence
