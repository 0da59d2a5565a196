"""Recipes: how a base model is fine-tuned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how fast.

    `trained_blocks` counts from the end and includes the final norm and the head; None trains
    everything. `learning_rate` and `weight_decay` are AdamW's; with `lr_decay`, the learning
    rate falls linearly to zero over the training, else it stays. `dropout` is the share of
    hidden values that are set to zero at random in training. With `embedding_lr` the
    embeddings are trained as well, whatever is frozen above them, at a learning rate of
    their own: a token that occurs in a few messages moves in a few steps only.

    `classifier.Classifier.prepare` makes a classifier ready for a recipe; `training.fit` follows
    its numbers, and trains whatever is trainable then.
    """

    trained_blocks: int | None
    learning_rate: float
    weight_decay: float = 0.1
    batch_size: int = 8
    epochs: int = 5
    lr_decay: bool = False
    dropout: float = 0.0
    embedding_lr: float | None = None


# The lecture's recipe for GPT-2. Pocket GPT's was chosen by cross-validation (see its model card);
# SmolLM2's learning rate out of three, by the validation messages, with three seeds and 20, 100
# and all training messages.
GPT2_RECIPE = Recipe(trained_blocks=1, learning_rate=5e-5)
SMOLLM2_RECIPE = Recipe(trained_blocks=1, learning_rate=1e-3, lr_decay=True)
POCKET_RECIPE = Recipe(
    trained_blocks=3, learning_rate=3e-4, epochs=4, lr_decay=True, dropout=0.1, embedding_lr=3e-3
)
