"""Training on a stream: pass after pass, and the same rows after an interruption."""

import shutil

import datasets
import pytest
from safetensors.torch import load_file
from short_runs import train
from torch.utils.data import IterableDataset

from edlm_hf.training.streams import EndlessRows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("step", [4, 8])
def test_a_run_that_goes_on_after_its_first_pass_sees_the_rows_that_it_would_have_seen(tmp_path, step):
    # 42 rows of 16 tokens: a pass is 5.25 batches of 8, and the run has twelve
    words = "the cat sat on a mat while dogs ran past every old house in town today".split()
    text = " ".join(words[(7 * i * i) % len(words)] for i in range(1000))[:635]
    (tmp_path / "train.txt").write_text(text)
    (tmp_path / "test.txt").write_text(text[:200])
    flags = ["--streaming", "--eval_dataset", tmp_path / "test.txt", "--save_total_limit", 9]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    measured = train(tmp_path / "train.txt", whole, *flags)
    shutil.copytree(whole, parts)
    for later in range(step + 4, 13, 4):
        shutil.rmtree(parts / f"checkpoint-{later}")
    (parts / "model.safetensors").unlink()

    again = train(tmp_path / "train.txt", parts, *flags)
    assert again["steps"] == measured["steps"] == 12 and again["eval_loss"] == measured["eval_loss"]
    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(first[name].equal(second[name]) for name in first)


class Numbers(IterableDataset):
    """The numbers below `count`, in another order in every pass."""

    def __init__(self, count: int):
        self.count, self.epoch = count, None

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __iter__(self):
        yield from ((number + self.epoch) % self.count for number in range(self.count))


def test_every_pass_has_an_order_of_its_own_and_begins_anew_with_the_first():
    rows = EndlessRows(Numbers(3))
    for _ in range(2):
        assert [number for number, _ in zip(rows, range(8), strict=False)] == [0, 1, 2, 1, 2, 0, 2, 0]


def test_a_stream_without_rows_ends():
    assert list(EndlessRows(Numbers(0))) == []
