"""What a language model has to be compared with: classifiers that take a second to train."""

from collections.abc import Callable

import tiktoken
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from spamgpt.batches import encode


def tf_idf(**options) -> Pipeline:
    """Counts, rare ones weighing more, and a logistic regression on them."""
    return make_pipeline(
        TfidfVectorizer(sublinear_tf=True, **options), LogisticRegression(C=30, max_iter=1000)
    )


def tf_idf_of_tokens(tokenizer: tiktoken.Encoding) -> Pipeline:
    """The same on the tokens that a language model is given, one and two at a time."""

    def tokens(text: str) -> list[str]:
        return [str(token) for token in encode([text], tokenizer)[0]]

    return tf_idf(tokenizer=tokens, token_pattern=None, lowercase=False, ngram_range=(1, 2))


# By name, a function that makes an untrained classifier of texts.
BASELINES: dict[str, Callable] = {
    "majority": lambda: DummyClassifier(strategy="most_frequent"),
    "TF-IDF words": lambda: tf_idf(ngram_range=(1, 2)),
    "TF-IDF characters": lambda: tf_idf(analyzer="char_wb", ngram_range=(2, 5)),
}
