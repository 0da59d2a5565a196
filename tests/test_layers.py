"""Layers are found by name, and put in place without a trace of what was there."""

import pytest
from torch import nn

from spamgpt.layers import choose, put

KINDS = (nn.Linear,)
FOUR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.mark.parametrize(
    "patterns, expected",
    [
        ("*", [f"h.{i}.{name}" for i in range(3) for name in FOUR]),
        ("*.c_fc", [f"h.{i}.mlp.c_fc" for i in range(3)]),
        ("h.2.*", [f"h.2.{name}" for name in FOUR]),
        (["h.0.attn.c_attn", "*.c_attn"], [f"h.{i}.attn.c_attn" for i in range(3)]),
    ],
)
def test_patterns_choose_layers_of_the_body(patterns, expected, make_classifier):
    classifier = make_classifier()
    for model in (classifier, classifier.transformer):
        assert list(choose(model, patterns, KINDS)) == expected
    assert (
        choose(classifier, "*.c_fc", KINDS)["h.1.mlp.c_fc"] is classifier.transformer.h[1].mlp.c_fc
    )


@pytest.mark.parametrize(
    "patterns", ["q_proj", ["*.c_fc", "q_proj"], ["*.c_fc", "score"], [], "h.0"]
)
def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is(patterns, make_classifier):
    with pytest.raises(ValueError) as error:
        choose(make_classifier(), patterns, KINDS)
    wrong = patterns if isinstance(patterns, str) else [*patterns, ""][-2 if patterns else 0]
    assert f"no layer of type Linear fits {wrong!r}: there are h.*.attn.c_attn, " in str(
        error.value
    )
    assert str(error.value).endswith("h.*.mlp.c_fc, h.*.mlp.c_proj")


def test_a_model_without_such_layers_says_so(make_classifier):
    with pytest.raises(ValueError, match=r"of type Bilinear fits '\*': there are none"):
        choose(make_classifier(), "*", (nn.Bilinear,))


def test_a_layer_of_another_kind_is_left_alone(make_classifier):
    """It may compute something else, which nothing put in its place would."""
    classifier = make_classifier()
    layer = classifier.transformer.h[1].mlp.c_fc
    layer.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: x})
    assert list(choose(classifier, "*.c_fc", KINDS)) == ["h.0.mlp.c_fc", "h.2.mlp.c_fc"]


@pytest.mark.parametrize("training", [False, True])
def test_what_is_put_takes_the_place_and_the_mode(training, make_classifier):
    classifier = make_classifier().train(training)
    new = nn.Sequential(nn.Dropout(0.5))
    order = [name for name, _ in classifier.transformer.h[1].named_children()]
    put(classifier, {"h.1.mlp.c_fc": new})
    assert classifier.transformer.h[1].mlp.c_fc is new and new[0].training is training
    assert [name for name, _ in classifier.transformer.h[1].named_children()] == order


def test_other_weights_have_to_prove_again_that_they_bear_int8(make_classifier):
    classifier = make_classifier()
    classifier.bears_int8 = True
    put(classifier, {"h.1.mlp.c_fc": nn.Linear(16, 64)})
    assert not classifier.bears_int8
