"""Without sampling, what is equal up to rounding ties, and the lowest index is taken.

A row alone and a row of a batch agree in this.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from published import tiny_denoiser
from transformers import BertConfig, BertForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.modeling.confidence import Score, likeliest_tokens, take_best

GREEDY = {"do_sample": False, "output_history": True, "return_dict_in_generate": True}
WAYS = [{"sampler": "first_hitting"}, {"max_denoising_steps": 2}, {"max_denoising_steps": 3}]


def wide(model, seed, scale=2.0):
    """Give a network random weights so large that it is far from linear.

    Then its rounding errors are far from zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(noise * scale / p.shape[-1] ** 0.5)

    return model.eval()


def denoiser(seed, hidden_dim, n_blocks=2):
    config = MDLMConfig(
        vocab_size=40,
        hidden_dim=hidden_dim,
        n_heads=2,
        cond_dim=4,
        n_blocks=n_blocks,
        model_length=8,
    )
    return wide(MDLMForMaskedLM(config), seed)


def order_of(out, row=0):
    """The positions of a row in the order in which they were revealed, one list for each step.

    Steps that revealed nothing are left out.
    """
    masked = [ids[row] == 39 for ids in out.history]
    steps = []
    for before, after in itertools.pairwise(masked):
        revealed = (before & ~after).nonzero()[:, 0].tolist()
        if revealed:
            steps.append(revealed)
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_masks_that_see_the_same_are_taken_by_index(dtype, way):
    """Nothing but masks: all positions are equal, so that the first step takes the first ones."""
    for seed, hidden_dim in enumerate([8, 16, 32, 64, 64, 128]):
        model = denoiser(seed, hidden_dim).to(dtype)
        for size in (1, 2, 3, 5, 8):
            out = model.generate(batch_size=size, max_length=6, **way, **GREEDY)
            first = order_of(out)[0]
            assert first == list(range(len(first)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_texts_from_nothing_are_the_same_alone_and_in_a_batch(dtype, way):
    for seed in range(12):
        hidden_dim = [8, 16, 32, 64][seed % 4]
        n_blocks = 1 + seed % 2
        model = denoiser(seed, hidden_dim, n_blocks).to(dtype)
        for length in (2, 3, 4):
            options = way | {"max_length": length, "do_sample": False}
            alone = model.generate(**options)[0]
            for size in (2, 3, 5, 8):
                several = model.generate(batch_size=size, **options)
                assert (several == alone).all()


def test_a_network_without_positions_fills_equal_masks_from_left_to_right():
    config = BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    bert = wide(BertForMaskedLM(config), seed=0, scale=1.5)
    with torch.no_grad():
        bert.bert.embeddings.position_embeddings.weight.zero_()

    model = EDLMForMaskedDiffusion.from_components(bert, mask_token_id=39)
    ids = torch.tensor([[3, 39, 39, 7, 39, 39], [39, 39, 39, 39, 39, 39]])
    out = model.generate(ids, sampler="first_hitting", **GREEDY)
    assert order_of(out, row=0) == [[1], [2], [4], [5]]
    assert order_of(out, row=1) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_tokens_tie_and_the_lowest_is_taken(dtype):
    """Rows of the projection are the same row, at both ends of a vocabulary computed in pieces."""
    model = denoiser(5, 64).to(dtype)
    masks = torch.full((1, 6), 39)
    with torch.no_grad():
        head = model.get_output_embeddings()
        best = model(masks).logits[0, 0, :39].argmax()
        for twin in (2, 17, 38):
            head.weight[twin] = head.weight[best]
            head.bias[twin] = head.bias[best]

    tokens = model.generate(batch_size=7, max_length=6, do_sample=False, max_denoising_steps=1)
    assert (tokens == min(2, int(best))).all()


def test_what_is_larger_than_rounding_decides():
    class Close(torch.nn.Module):
        """Confidence grows from left to right by a thousandth, and so do two tokens."""

        def forward(self, input_ids, attention_mask=None):
            logits = torch.zeros(*input_ids.shape, 5)
            logits[..., 1] = 3 + 1e-3 * torch.arange(input_ids.shape[1])
            logits[..., 2] = logits[..., 1] + 1e-3
            return SimpleNamespace(logits=logits)

    model = EDLMForMaskedDiffusion.from_components(Close(), mask_token_id=4)
    out = model.generate(torch.full((2, 4), 4), sampler="first_hitting", **GREEDY)
    assert out.sequences.tolist() == [[2] * 4] * 2

    # the last position is the first
    masked = [(ids[0] == 4).tolist() for ids in out.history]
    assert masked[1] == [True, True, True, False]
    assert masked[2] == [True, True, False, False]


def test_confidence_is_the_log_odds_of_the_likeliest_token():
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.7], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    logits = probabilities.log()
    assert likeliest_tokens(logits).tolist() == [2, 0, 0]

    score = Score.of("confidence", logits, torch.float64)
    odds = torch.tensor([0.7 / 0.3, 0.6 / 0.4], dtype=torch.float64)
    torch.testing.assert_close(score.values[:2].exp(), odds)
    assert score.values[2] == torch.inf
    assert (score.errors < 1e-12).all()

    # one unit in the last place of bfloat16
    errors = Score.of("confidence", logits.float(), torch.bfloat16).errors
    assert ((errors > 0.007) & (errors < 0.012)).all()

    for row in ([math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]):
        logits = torch.tensor([row])
        with pytest.raises(ValueError, match="no token left"):
            likeliest_tokens(logits)
        with pytest.raises(ValueError, match="no token left"):
            Score.of("entropy", logits, torch.float32)


def test_entropy_and_margin_are_those_of_the_probabilities():
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.7], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    expected = []
    for row in probabilities.tolist():
        expected.append(-sum(p * math.log(p) for p in row if p))

    entropy = Score.of("entropy", probabilities.log(), torch.float64)
    torch.testing.assert_close(-entropy.values, torch.tensor(expected, dtype=torch.float64))
    assert (entropy.errors < 1e-12).all()

    expected = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    margin = Score.of("margin", probabilities.log(), torch.float64)
    torch.testing.assert_close(margin.values, expected)
    assert (margin.errors < 1e-12).all()


@pytest.mark.parametrize("name", ["entropy", "confidence", "margin"])
def test_scores_in_parts_are_those_of_all_positions_at_once(name, monkeypatch):
    noise = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    logits = noise * torch.logspace(-2, 3, 7)[:, None]
    logits[:, 4] = -torch.inf
    logits[3, :29] = -torch.inf  # one token is left

    whole = Score.of(name, logits, torch.float32)
    monkeypatch.setattr("edlm_hf.modeling.confidence.CACHED_LOGITS", 60)
    parts = Score.of(name, logits, torch.float32)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.errors, whole.errors)

    nothing = Score.of(name, logits[:0], torch.float32)
    assert nothing.values.shape == (0,)

    # The entropy is exact within its error, also where it is nearly zero
    if name == "entropy":
        exact = torch.special.entr(logits.double().softmax(-1)).sum(-1)
        assert ((-whole.values - exact).abs() <= whole.errors).all()
        assert whole.values[3] == 0


def test_ties_are_with_the_highest_that_is_left_and_do_not_chain():
    log_odds = torch.tensor(
        [
            [0.0, 1.0, 1.9, 2.5, -torch.inf],
            [5.0, 5.5, -torch.inf, -torch.inf, 5.9],
        ]
    )
    score = Score(log_odds, torch.full((2, 5), 1.0))

    # 1.9 is within 1 of 2.5, then 2.5 is alone, then 1.0 and 0.0 tie with one another
    first_row = [[], [2], [2, 3], [0, 2, 3], [0, 1, 2, 3]]
    for count, expected in enumerate(first_row):
        taken = take_best(score, torch.tensor([count, 1]))
        assert taken[0].nonzero()[:, 0].tolist() == expected
        assert taken[1].nonzero()[:, 0].tolist() == [0]

    taken = take_best(score, torch.tensor([4, 3]))
    assert taken[1].tolist() == [True, True, False, False, True]

    no_rows = Score(log_odds[:0], score.errors[:0])
    assert take_best(no_rows, torch.zeros(0, dtype=torch.long)).shape == (0, 5)


def test_padding_beside_a_row_changes_none_of_its_ties():
    """Rows of a ragged batch from nothing but masks break the ties of the first step by index."""
    model = tiny_denoiser()
    lengths = [2, 3, 4, 5]
    attention_mask = torch.zeros(4, 6, dtype=torch.long)
    for i, length in enumerate(lengths):
        attention_mask[i, :length] = 1

    ids = torch.full((4, 6), 12).masked_fill(attention_mask == 0, 0)
    options = {"do_sample": False, "max_denoising_steps": 2}
    together = model.generate(ids, attention_mask=attention_mask, **options)
    for i, length in enumerate(lengths):
        alone = model.generate(ids[i : i + 1, :length], **options)[0]
        assert torch.equal(together[i, :length], alone)
