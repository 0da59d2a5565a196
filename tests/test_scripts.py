"""The maintainers' programs, where a mistake would not show in their output."""

import math

import nbformat
import pytest
import refresh_notebooks
import torch
from pretrain_pocket import LineBag


class Letters:
    """A tokenizer of six letters, a line end and <|endoftext|>."""

    n_vocab, eot_token = 8, 7

    def decode_single_token_bytes(self, token):
        return b"abcdef\n"[token : token + 1]


FIRST, SECOND = [0, 1, 2] * 7 + [6], [3, 4, 5] * 7  # two lines that share no letter


@pytest.mark.parametrize(("knows_its_line", "loss"), [(True, math.log(3)), (False, math.log(8))])
def test_the_line_loss_asks_for_the_tokens_of_the_line_so_far(knows_its_line, loss):
    """A state that spells its line's three letters costs ln 3, one that says nothing ln 8."""
    ids = torch.tensor([FIRST + SECOND])
    bag = LineBag(Letters(), [ids[0].numpy()], n_embd=8)
    torch.nn.init.eye_(bag.proj.weight)
    torch.nn.init.zeros_(bag.proj.bias)
    hidden = torch.zeros(1, ids.shape[1], 8)
    if knows_its_line:
        hidden[0, : len(FIRST), :3] = hidden[0, len(FIRST) :, 3:6] = 64.0
    assert bag.loss(hidden, ids, torch.eye(8), step=1).item() == pytest.approx(loss, abs=1e-3)


def test_refreshed_notebooks_keep_tags_and_hidden_outputs_and_nothing_of_this_machine():
    kept = {"tags": ["nbval-check-output"], "jupyter": {"outputs_hidden": True}}
    made = {"execution": {"iopub.execute_input": "2026-01-01"}, "scrolled": True}
    cells = [nbformat.v4.new_code_cell("1 + 1", metadata=kept | made) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    refresh_notebooks.clean(notebook)
    assert [cell.metadata for cell in notebook.cells] == [kept, kept]
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
