"""The notation page tells every meaning of a symbol; the glossary keeps one word for a thing."""

import pytest
from helpers import ROOT


def rows(page: str) -> list[list[str]]:
    lines = (ROOT / "chapters" / page).read_text().splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines if "|" in line]


# A symbol, and where it means something else than where it was introduced.
SECOND_MEANINGS = [
    ("$K$", "chapter 11 and in exercise 5 $K$ is the width of a kernel"),
    ("$k$", "in exercise 1 the width of a kernel"),
    ("$W$", "a convolution's weights"),
    ("$c$", "the number of one channel"),
    ("$i$", "in chapter 10 $i$ and $j$ are numbers of pixels"),
    ("$m^*$", "break-even"),
    ("$a_p$", "$p_k$ is a probability"),
    ("$s$", "a stride"),
    ("$n$", "fan-in or fan-out"),
    ("$e^{-n}$", "in chapter 9"),
    ("$y$", "in chapter 8 as $+1$ or $-1$"),
    ("$z$", "in chapter 10 $z$ is the output of a layer's conv1"),
    ("$g$", "in chapter 10 $g$ is a gradient"),
    (r"$\sigma$", r"in chapter 10 $\sigma$ has the $\varepsilon$"),
]


@pytest.mark.parametrize(("symbol", "meaning"), SECOND_MEANINGS)
def test_every_meaning_of_a_symbol_is_told(symbol, meaning):
    told = [row[1] for row in rows("notation.md") if symbol in row[0].split(", ")]
    assert any(meaning in text for text in told), told


CHINESE = {
    "batch normalisation (BN)": "批量规范化（批归一化）",
    "concatenation": "连结（拼接）",
    "confidence interval": "置信区间",
    "dense block": "稠密块（密集块）",
    "dense connection": "稠密连接（密集连接）",
    "dropout": "暂退法（随机失活）",
    "fan-in, fan-out": "扇入, 扇出",
    "implicit deep supervision": "隐式深度监督",
    "margin": "间隔",
    "plain network": "普通网络（直连网络）",
    "shared normalisation": "共享规范化（共享归一化）",
}


@pytest.mark.parametrize("term", CHINESE)
def test_the_usual_chinese_word_comes_first_and_the_other_beside_it(term):
    assert [row[1] for row in rows("glossary.md") if row[0] == term] == [CHINESE[term]]


def test_dense_is_one_word_throughout():
    for row in rows("glossary.md"):
        assert "平坦" not in row[1], "flat, not plain"
        assert "密集" not in row[1].split("（")[0], row
