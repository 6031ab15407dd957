"""Figures of several networks: scikit-learn's micro-F1, and a test figure that only validation chooses."""

import pytest
import torch
from sklearn.metrics import f1_score

from lightning_modules.freekd.scores import Scoreboard


def same(values):
    return values


def finished(board, step, logits, y, masks, keep=True):
    board.start()
    board.add(logits, y, masks)
    return board.finish(step, same, keep)


@pytest.mark.parametrize("multi_label", [False, True])
def test_micro_f1_is_scikit_learns(multi_label):
    torch.manual_seed(0)
    logits = torch.randn(3, 50, 4)
    y = (torch.rand(50, 4) < 0.3).float() if multi_label else torch.randint(4, (50,))
    valid = torch.arange(50) < 30
    found = finished(Scoreboard(3, multi_label), 1, logits, y, {"valid": valid, "test": ~valid})
    for part, mask in (("valid", valid), ("test", ~valid)):
        for k in range(3):
            said = (logits[k, mask] > 0).int() if multi_label else logits[k, mask].argmax(-1)
            wanted = f1_score(y[mask].numpy(), said.numpy(), average="micro")
            assert found[part][k].item() == pytest.approx(wanted)


def test_a_validation_in_pieces_is_the_validation_of_the_whole():
    torch.manual_seed(1)
    logits, y, valid = torch.randn(2, 40, 3), torch.randint(3, (40,)), torch.rand(40) < 0.5
    whole = finished(Scoreboard(2, False), 1, logits, y, {"valid": valid, "test": ~valid})
    board = Scoreboard(2, False)
    for piece in (slice(0, 13), slice(13, 40)):
        board.add(logits[:, piece], y[piece], {"valid": valid[piece], "test": ~valid[piece]})
    pieces = board.finish(1, same, True)
    assert all(torch.allclose(whole[key], pieces[key]) for key in whole)


def said(right, sure=5.0):
    """Logits of two classes for four nodes of class 0, of which the first `right` are answered rightly."""
    signs = torch.where(torch.arange(4) < right, sure, -sure)
    return torch.stack([signs, -signs], -1)


def test_the_test_figure_is_that_of_each_networks_best_validation_ties_by_its_loss():
    y, valid = torch.zeros(8, dtype=torch.long), torch.arange(8) < 4
    masks, board = {"valid": valid, "test": ~valid}, Scoreboard(2, False)
    for step, one, two in ((1, (said(2), said(4)), (said(3), said(1))),  # (validation, test) of both networks
                           (2, (said(3), said(1)), (said(3, 0.1), said(2))),  # two: a tie with a lower loss
                           (3, (said(3), said(4)), (said(2), said(4)))):  # one: a tie with the same loss
        finished(board, step, torch.stack([torch.cat(one), torch.cat(two)]), y, masks)
    assert board.best[:, 0].tolist() == [0.75, 0.75]
    assert board.best[:, 2].tolist() == [0.25, 0.5]
    assert board.best[:, 3].tolist() == [2, 2]


def test_a_validation_that_only_looks_keeps_nothing():
    y, valid = torch.zeros(8, dtype=torch.long), torch.arange(8) < 4
    board = Scoreboard(1, False)
    finished(board, 1, torch.cat([said(4), said(4)])[None], y, {"valid": valid, "test": ~valid}, keep=False)
    assert board.best.isnan().all()


def test_the_best_goes_through_a_checkpoint():
    board, other = Scoreboard(2, False), Scoreboard(2, False)
    board.best = torch.rand(2, 4, dtype=torch.float64)
    other.load_state_dict(board.state_dict())
    assert torch.equal(board.best, other.best)
