"""Generated wrong answers are found, and right ones in another style get full marks.

This is a sample; ``python tests/mutants.py`` tries all, and lists what gets through.
"""

import ast
import tomllib
from collections import Counter

import pytest
from helpers import ASSIGNMENTS, ROOT
from mutants import exercises, mutants_of, survey, try_rewrites

SEED = 15
A_CELL = 5  # mutants
REWRITES = 2  # automatic ones of a cell; those of tests/rewrites/ are all tried


@pytest.fixture(scope="module")
def sample() -> dict:
    """Try a few mutants and rewrites of each solution cell, the same ones each time."""
    print(f"the sample has the seed {SEED}, see SEED in {__file__}")
    counts, survivors, rewrites, refused = Counter(), [], 0, []
    for name in ASSIGNMENTS:
        found = exercises(name)
        some, left = survey(found, limit=A_CELL, seed=SEED, bar=False)
        counts += some
        survivors += [f"{name}, {mutant.cell}: {mutant.operator}\n{diff}" for mutant, diff in left]
        count, messages = try_rewrites(found, limit=REWRITES, seed=SEED)
        rewrites += count
        refused += [f"{name} {message}" for message in messages]
    return {"counts": counts, "survivors": survivors, "rewrites": rewrites, "refused": refused}


def test_of_the_generated_wrong_answers_at_most_3_percent_get_through(sample):
    wrong, caught = sample["counts"]["other"], sample["counts"]["other caught"]
    assert wrong > 2 * len(ASSIGNMENTS)
    assert caught >= 0.97 * wrong, (
        f"{caught} of {wrong} are found, the seed is {SEED}\n\n" + "\n\n".join(sample["survivors"])
    )


def test_whatever_raises_on_all_arguments_is_refused(sample):
    assert sample["counts"]["raises"] == sample["counts"]["raises caught"]


def test_right_answers_in_another_style_get_full_marks(sample):
    assert sample["rewrites"] > 5 * len(ASSIGNMENTS)
    assert not sample["refused"], "\n".join(sample["refused"])


def test_every_assignment_has_right_answers_in_other_styles():
    tables = sorted((ROOT / "tests/rewrites").glob("*.toml"))
    assert [path.stem for path in tables] == ASSIGNMENTS
    for path in tables:
        answers = tomllib.loads(path.read_text())["answer"]
        assert len(answers) >= 5
        for answer in answers:
            assert answer.keys() == {"cell", "why", "code"}
            ast.parse(answer["code"])


# --- The generator and the battery themselves ----------------------------------------------------


@pytest.fixture(scope="module")
def plain_layer():
    return exercises(ASSIGNMENTS[0])[0]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("F.relu(self.norm(x))", "torch.clamp(self.norm(x), min=0)", "alike"),
        ("F.relu(self.norm(x))", "F.relu(self.norm(x)).detach()", "other"),
        ("F.relu(self.norm(x))", "F.relu(self.norm(x.relu_()))", "other"),
        ("F.relu(self.norm(x))", "F.relu(self.eval().norm(x))", "other"),
        ("F.relu(self.norm(x))", "F.relu((self.norm(x), self.norm(x))[1])", "other"),
        ("F.relu(self.norm(x))", "F.relu(self.norm(x)).squeeze()", "other"),
        ("F.relu(self.norm(x))", "F.relu(self.norms(x))", "raises"),
        ("padding=1", "padding=1, padding_mode='reflect'", "other"),
        ("padding=1", "padding='same'", "alike"),
    ],
)
def test_the_battery_tells_other_behaviour_from_other_style(plain_layer, old, new, kind):
    assert plain_layer.source.count(old) == 1
    assert plain_layer.behaves(plain_layer.source.replace(old, new)) == kind


def test_mutants_are_many_differ_and_change_only_what_the_reader_writes(plain_layer):
    mutants = mutants_of(plain_layer.cell, plain_layer.source)
    assert len({mutant.source for mutant in mutants}) == len(mutants) > 100
    assert len({mutant.operator for mutant in mutants}) > 20
    for mutant in mutants:
        assert "def __init__(self, channels)" in mutant.source
        assert "super().__init__()" in mutant.source
