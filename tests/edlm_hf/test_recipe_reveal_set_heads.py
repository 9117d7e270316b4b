"""recipes/reveal_set_heads.py: a head gives the tokens of one step a distribution of their own."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import edlm_hf
from edlm_hf.evaluation import sampler_bound
from edlm_hf.tokenization import text8_tokenizer

sys.path.append(str(Path(__file__).parents[2] / "recipes"))

import reveal_set_heads as recipe  # noqa: E402
from reveal_set_head import Reader, RevealSet, RevealSetHead  # noqa: E402

LENGTH = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A composite with random weights, and texts of which each repeats one letter."""
    folder = tmp_path_factory.mktemp("heads")
    tokenizer = text8_tokenizer(model_max_length=LENGTH)
    config = edlm_hf.MDLMConfig(
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        model_length=LENGTH,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=1,
        n_heads=2,
    )
    torch.manual_seed(0)
    denoiser = edlm_hf.MDLMForMaskedLM(config)
    torch.nn.init.normal_(denoiser.get_output_embeddings().weight, std=0.5)  # zeros otherwise
    edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")

    # Rows of 8 letters, a different letter in each
    letters = [chr(ord("a") + i % 26) * (LENGTH - 1) for i in range(26 * 40)]
    (folder / "texts.txt").write_text("".join(letters))
    return folder


@pytest.fixture
def model(folder):
    return edlm_hf.EDLMForMaskedDiffusion.from_pretrained(folder / "base").eval().requires_grad_(False)


@pytest.fixture
def texts() -> torch.LongTensor:
    ids = torch.randint(1, 20, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = text8_tokenizer().bos_token_id
    return ids


def trained_head(hidden_dim: int = 16) -> torch.nn.Module:
    """A head that changes something."""
    torch.manual_seed(1)
    head = RevealSetHead(hidden_dim, LENGTH, width=16)
    torch.nn.init.normal_(head.leave.weight)
    return head.eval()


def call(folder: Path, output: Path, max_steps: int) -> dict:
    recipe.run(
        output,
        train_file=str(folder / "texts.txt"),
        dataset=str(folder / "texts.txt"),
        model=str(folder / "base"),
        num_steps=2,
        seeds=2,
        max_steps=max_steps,
        batch_size=8,
        learning_rate=1e-2,
        save_steps=5,
        num_texts=16,
    )
    return json.loads((output / "results.json").read_text())


def test_a_path_reveals_every_token_once_at_the_likelihood_of_the_sampler(model, texts):
    reader = Reader(model, num_steps=3)
    nats = torch.zeros(len(texts), dtype=torch.float64)
    times_revealed = torch.zeros_like(texts)
    for revealed in reader.paths(texts):
        rows = revealed.present.nonzero()[:, 0]
        nats.index_add_(0, rows, reader.nats(revealed.hidden, revealed).double())
        times_revealed[rows, revealed.places[revealed.present]] += 1
        assert torch.equal(texts.gather(1, revealed.places), revealed.tokens)

    assert (times_revealed[:, 1:] == 1).all() and (times_revealed[:, 0] == 0).all()
    options = {"sampler": "spaced", "score": "entropy", "num_candidates": 1}
    bound = sampler_bound(model, texts, num_steps=3, **options)
    assert nats.tolist() == pytest.approx(bound.sequence_nats, rel=1e-5)


def test_an_untrained_head_leaves_the_tokens_independent(model, texts):
    reader = Reader(model, num_steps=2)
    revealed = next(reader.paths(texts))
    head = RevealSetHead(16, LENGTH)
    assert torch.equal(head(revealed, reader.embeddings(revealed)), revealed.hidden)


def test_a_token_depends_on_the_tokens_before_it_alone(model, texts):
    reader = Reader(model, num_steps=2)
    revealed = next(reader.paths(texts))
    head = trained_head()
    embeddings = reader.embeddings(revealed)
    before = head(revealed, embeddings)

    # Another token in place 1 changes the states from place 2 on
    changed = embeddings.clone()
    changed[:, 1] += 1
    difference = (head(revealed, changed) - before).abs().amax(-1)
    assert (difference[:, :2] == 0).all() and (difference[:, 2:] > 0).all()


def test_padding_of_other_rows_changes_no_token(model):
    flags = torch.zeros(2, LENGTH, dtype=torch.bool)
    flags[0, [2, 5]] = True
    flags[1, [1, 3, 4, 7]] = True
    hidden = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % 20

    reader = Reader(model, num_steps=2)
    together = reader.padded(hidden, ids, flags)
    alone = reader.padded(hidden[:2], ids[:1], flags[:1])
    head = trained_head()
    of_both = head(together, reader.embeddings(together))
    of_one = head(alone, reader.embeddings(alone))
    assert together.places[together.present].tolist() == [2, 5, 1, 3, 4, 7]
    torch.testing.assert_close(of_both[0, :2], of_one[0])


def test_tokens_are_drawn_from_the_distribution_that_gives_their_likelihood(model):
    """40,000 draws of the same reveal set of two: every pair within five standard deviations, or four draws.

    One of the 784 pairs is further off in less than 1 of 100 cases.
    """
    reader = Reader(model, num_steps=2)
    head = trained_head()
    one = reader.padded(
        torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, LENGTH, dtype=torch.long),
        torch.isin(torch.arange(LENGTH), torch.tensor([2, 5])).unsqueeze(0),
    )
    many = RevealSet(*(part.expand(40_000, *part.shape[1:]) for part in one))
    uniforms = torch.rand(40_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = reader.draw(head, many, uniforms)

    # log q of all pairs of the 27 letters
    size = model.config.vocab_size
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    all_pairs = RevealSet(
        one.hidden.expand(len(pairs), -1, -1), pairs, one.places.expand_as(pairs), one.present.expand_as(pairs)
    )
    with torch.no_grad():
        corrected = head(all_pairs, reader.embeddings(all_pairs))
        chances = (-reader.nats(corrected, all_pairs).view(-1, 2).sum(-1)).exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-4)

    frequencies = torch.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=len(pairs)) / 40_000
    allowed = 5 * (chances / 40_000).sqrt() + 4 / 40_000
    assert ((frequencies - chances).abs() <= allowed).all()
    assert torch.equal(reader.draw(head, many, uniforms), drawn)


def test_heads_learn_that_all_letters_of_a_text_are_equal(folder, tmp_path):
    found = call(folder, tmp_path, max_steps=80)
    gains = found["gains"]
    for seed in (0, 1):
        gain = gains[f"head, seed {seed}"]
        # Of 26 letters the first of a step costs log2(26) = 4.7 bits, and the other three nothing
        assert gain["value"] > 0.5 * 6 / 8 * math.log2(26)
        assert 0 < gain["standard_error"] < 0.5
    assert gains["head, seed 0"] != gains["head, seed 1"]
    assert found["training_tokens"] == 80 * 8 * 8 and len(found["curve"]) == 4

    # What is left when the steps are paid for that take as long
    mean = (gains["head, seed 0"]["value"] + gains["head, seed 1"]["value"]) / 2
    assert gains["heads"]["value"] == pytest.approx(mean)
    for of_draw in found["calls_of_a_draw"].values():
        for num_steps in {2 + math.floor(of_draw), 2 + math.ceil(of_draw)} - {2}:
            left = gains["heads"]["value"] - gains[f"T = {num_steps}"]["value"]
            assert gains[f"heads - T = {num_steps}"]["value"] == pytest.approx(left)


def test_more_steps_gain_what_their_bound_says(model, texts):
    rows = texts.tolist()
    nats = [recipe.nats_of_spaced(model, rows, num_steps, batch_size=2) for num_steps in (2, 4)]
    options = {"sampler": "spaced", "score": "entropy", "num_candidates": 1}
    bounds = [sampler_bound(model, texts, num_steps=num_steps, **options) for num_steps in (2, 4)]
    for of_texts, bound in zip(nats, bounds, strict=True):
        assert of_texts.tolist() == pytest.approx(bound.sequence_nats, rel=1e-5)


def test_a_training_that_was_cut_short_goes_on_bit_by_bit(folder, tmp_path, monkeypatch):
    # What the clock decides is the same in both
    monkeypatch.setattr(recipe, "calls_of_a_draw", lambda study, texts: 1.5)
    whole = call(folder, tmp_path / "whole", max_steps=10)

    # Stop after the seventh step, two after the last state
    take_step = recipe.Study.train_step

    def interrupted(study, texts):
        if len(study.curve) == 7:
            raise KeyboardInterrupt
        return take_step(study, texts)

    monkeypatch.setattr(recipe.Study, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(folder, tmp_path / "parts", max_steps=10)
    monkeypatch.setattr(recipe.Study, "train_step", take_step)

    parts = call(folder, tmp_path / "parts", max_steps=10)
    assert parts["gains"] == whole["gains"] and parts["curve"] == whole["curve"]
