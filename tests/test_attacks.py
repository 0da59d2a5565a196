"""Messages that read alike and are written differently."""

import numpy as np
import pytest

from spamgpt.attacks import ATTACKS, attacked, under_attack
from spamgpt.texts import normalise

TEXTS = ["WIN a free prize, call 0906 now!", "ok see you later this evening"]
UNDONE = [  # by normalisation, exactly
    "as it is",
    "two spaces for one",
    "300 spaces behind",
    "300 new lines in front",
    "zero-width space in each word",
    "full-width letters",
]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_each_text_and_is_repeatable(name):
    found = attacked(TEXTS, name)
    assert len(found) == 2 and found == attacked(TEXTS, name)
    if name not in ("as it is", "letters swapped", "lower case"):
        assert all(after != before for after, before in zip(found, TEXTS, strict=True))
    assert ([normalise(text) for text in found] == TEXTS) == (name in UNDONE)


def test_attacks_that_draw_depend_on_the_seed():
    for name in ("leetspeak, 30 % of letters", "20 ordinary words behind", "letters swapped"):
        assert len({tuple(attacked(TEXTS * 3, name, seed)) for seed in range(5)}) > 1


def test_the_table_counts_what_is_found_and_lost_after_each_attack():
    texts, is_spam = ["WIN", "win", "now", "WHAT"], [True, True, False, False]
    table = under_attack(lambda t: np.array([x.isupper() for x in t]) * 0.9, texts, is_spam)
    assert list(table.index) == list(ATTACKS)
    assert table.loc["as it is"].to_dict() == {"found": 0.5, "lost": 0.5}
    assert table.loc["capitals"].to_dict() == {"found": 1, "lost": 1}
    assert table.loc["lower case"].to_dict() == {"found": 0, "lost": 0}
    strict = under_attack(lambda t: np.full(len(t), 0.9), texts, is_spam, threshold=0.9)
    assert (strict == 0).all(axis=None)
