"""Windows over a long document: every token is scored once."""

import pytest
import torch

from edlm_hf.data import document_windows


def test_windows_of_a_long_document():
    windows, scored = document_windows(torch.arange(10), length=6, stride=3)
    assert windows.tolist() == [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9]]
    assert [w[s].tolist() for w, s in zip(windows, scored, strict=True)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize("n", [1, 5, 6, 7, 12, 40])
@pytest.mark.parametrize("stride", [None, 1, 4, 6])
def test_every_token_of_a_document_is_scored_once(n, stride):
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    windows, scored = document_windows(ids, length=6, stride=stride)
    assert windows.shape == scored.shape == (len(windows), min(n, 6))
    assert torch.equal(windows[scored], ids)


def test_windows_that_lose_tokens_are_refused():
    for length, stride in ((6, 7), (6, 0), (0, None)):
        with pytest.raises(ValueError, match="1 <= stride <= length"):
            document_windows(torch.arange(10), length, stride)
    for ids in (torch.arange(0), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="one document"):
            document_windows(ids, 4)
