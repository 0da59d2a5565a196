"""What is the same to a reader is the same to the tokenizer."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamgpt.batches import encode
from spamgpt.texts import normalise

PLAIN = "Win a free prize, call now"
SAME = {
    "spaces": "  Win  a \u00a0 free\u3000prize,\tcall now   " + " " * 300,
    "new lines": "\n" * 300 + "Win a free\r\nprize, call\u2028now",
    "zero-width space": "W\u200bin a fr\u200bee pri\u200bze, ca\u200bll n\u200bow",
    "joiners and marks of direction": "W\u200din a \u202efree\u202c prize\u2060, call now\ufeff",
    "soft hyphen": "Win a free pri\u00adze, call now",
    "full width": "Ｗｉｎ ａ ｆｒｅｅ ｐｒｉｚｅ， ｃａｌｌ ｎｏｗ",
    "mathematical letters": "𝐖𝐢𝐧 𝒂 𝖋𝖗𝖊𝖊 𝓹𝓻𝓲𝔃𝓮, 𝚌𝚊𝚕𝚕 now",
    "fillers that belong to no category": "Win\u3164a free\u115f prize\u034f, call\ufe0f now",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_what_reads_alike_becomes_the_same_text(text):
    assert normalise(text).replace("Wina", "Win a") == PLAIN


@pytest.mark.parametrize("text", ["Wіn", "W1n", "win", "Win!", "cafe", "naïve £5 – “ok” 明天见 🎉"])
def test_what_reads_differently_stays_different(text):
    assert normalise(text) != normalise("Win") and normalise(text) == text


def test_an_accent_of_its_own_joins_its_letter():
    assert normalise("cafe\u0301") == normalise("caf\u00e9") == normalise("cafe\u200b\u0301")


def test_a_text_that_cannot_be_seen_is_empty():
    assert normalise("\u200b\u3164 \n\ufeff") == ""


@given(st.text() | st.text(alphabet="a \n\u200b\u0301\u3164ｆ\ufe0f\u1100\u1161"))
def test_a_second_time_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert not any(unicodedata.category(c) == "Cf" for c in once)
    assert once == " ".join(once.split())


def test_every_text_is_normalised_before_it_is_tokenised(pocket_tokenizer):
    assert len({tuple(ids) for ids in encode([PLAIN, SAME["full width"]], pocket_tokenizer)}) == 1
