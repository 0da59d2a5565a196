"""Ways of writing a message that change little for people: does a classifier see through them?"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from spamgpt import SEED

LEET = str.maketrans("aeiostAEIOST", "431057431057")
LOOK_ALIKE = str.maketrans("aceiopxyABCEHKMOPTX", "асеіорхуАВСЕНКМОРТХ")  # Cyrillic
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
ORDINARY = """
about after again back because before bring call come could day dinner does early evening
everyone find friend from give going good have home hope house just know last later leave let
like little long look lunch make maybe more morning much need never night now okay only other
over people place please really right school see should sleep some soon still sure take talk
tell thanks that them there think this time today tomorrow tonight want watch week well went
what when where which will with work would yes your
"""
Attack = Callable[[str, random.Random], str]


def _each_word(change: Callable[[str], str]) -> Attack:
    return lambda text, _: " ".join(map(change, text.split(" ")))


def _leet(text: str, rng: random.Random) -> str:
    return "".join(c.translate(LEET) if rng.random() < 0.3 else c for c in text)


def _swapped(text: str, rng: random.Random) -> str:
    """Two letters in the middle of every fifth word change places, as in haste."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and rng.random() < 0.2:
            at = rng.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _ordinary(n: int, rng: random.Random) -> str:
    return " ".join(rng.choices(ORDINARY.split(), k=n))


# By name: makes of a message one that reads alike. The first one changes nothing.
ATTACKS: dict[str, Attack] = {
    "as it is": lambda text, _: text,
    "two spaces for one": lambda text, _: text.replace(" ", "  "),
    "300 spaces behind": lambda text, _: text + " " * 300,
    "300 new lines in front": lambda text, _: "\n" * 300 + text,
    "zero-width space in each word": _each_word(lambda word: word[:1] + "\u200b" + word[1:]),
    "full-width letters": lambda text, _: text.translate(FULL_WIDTH),
    "lower case": lambda text, _: text.lower(),
    "capitals": lambda text, _: text.upper(),
    "letters swapped": _swapped,
    "leetspeak, 30 % of letters": _leet,
    "look-alike letters": lambda text, _: text.translate(LOOK_ALIKE),
    "emoji between words": _each_word(lambda word: word + " \U0001f642"),
    "in HTML": lambda text, _: f"<html><body><p>{text}</p></body></html>",
    "20 ordinary words behind": lambda text, rng: f"{text} {_ordinary(20, rng)}",
    "300 ordinary words in front": lambda text, rng: f"{_ordinary(300, rng)} {text}",
}


def attacked(texts: Sequence[str], name: str, seed: int = SEED) -> list[str]:
    """The texts after the attack called `name`; what is drawn is fixed by `seed`."""
    rng = random.Random(seed)
    return [ATTACKS[name](text, rng) for text in texts]


def under_attack(
    probability: Callable[[list[str]], np.ndarray],
    texts: Sequence[str],
    is_positive: Sequence[bool],
    threshold: float = 0.5,
) -> pd.DataFrame:
    """What `probability` (of the positive label, (N,)) does with texts after each attack.

    A row for each: `found`, the share of positive texts above the threshold, and `lost`, that
    of the others (both 0 to 1).
    """
    positive, rows = np.asarray(is_positive, dtype=bool), {}
    for name in ATTACKS:
        called = np.asarray(probability(attacked(texts, name))) > threshold
        rows[name] = {"found": called[positive].mean(), "lost": called[~positive].mean()}
    return pd.DataFrame.from_dict(rows, orient="index")
