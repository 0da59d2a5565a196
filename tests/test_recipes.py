"""The numbers of the two recipes, which results everywhere rest on."""

from dataclasses import asdict

from spamgpt.models.base import load_base
from spamgpt.recipes import GPT2_RECIPE, POCKET_RECIPE


def test_gpt2_is_trained_as_in_the_lecture():
    """Five epochs in batches of eight, AdamW at 5e-5 with weight decay 0.1, the last block."""
    assert asdict(GPT2_RECIPE) == {
        "trained_blocks": 1,
        "learning_rate": 5e-5,
        "weight_decay": 0.1,
        "batch_size": 8,
        "epochs": 5,
        "lr_decay": False,
        "dropout": 0.0,
        "embedding_lr": None,
    }


def test_pocket_gpt_is_trained_as_its_model_card_says():
    assert asdict(POCKET_RECIPE) == {
        "trained_blocks": 3,
        "learning_rate": 3e-4,
        "weight_decay": 0.1,
        "batch_size": 8,
        "epochs": 4,
        "lr_decay": True,
        "dropout": 0.1,
        "embedding_lr": 3e-3,
    }


def test_a_base_model_brings_its_recipe():
    assert load_base("pocket").recipe is POCKET_RECIPE
