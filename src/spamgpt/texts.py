"""What a message says, whatever it is written with.

The same letter can be written in several ways, and some characters cannot be seen at all. A
tokenizer takes each way for other tokens, so a classifier that knows one way is fooled by the
next. Every text passes here before it is tokenised, in training and in use.
"""

import re
import unicodedata

# Of Unicode's "default ignorable code points", those outside category Cf: joiners, fillers and
# variation selectors. Source: DerivedCoreProperties.txt, https://www.unicode.org/reports/tr44/
IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def normalise(text: str) -> str:
    """The text with one way of writing each character, and nothing that cannot be seen.

    Unicode's compatibility form NFKC (full-width and other styled letters become plain ones),
    no characters that are invisible by definition (category Cf, such as zero-width spaces, and
    fillers), each run of white space one space, none at the ends. Letters of other alphabets
    that look alike stay what they are. May be applied again without effect.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = IGNORABLE.sub("", "".join(c for c in text if unicodedata.category(c) != "Cf"))
        # What stood apart may join now, an accent and the letter before it.
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())
