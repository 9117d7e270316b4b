"""Energies of every type by their definitions.

Padding, candidates and start tokens are of every kind.
"""

from types import SimpleNamespace

import pytest
import torch
from composites import CLEAN, MASK, NOISY, build
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion


def masked_log_probs(logits):
    """log p (..., L, V) of a denoiser, whose mask token is impossible."""
    is_mask = torch.arange(13) == MASK
    return logits.masked_fill(is_mask, -torch.inf).log_softmax(-1)


def by_hand(model, clean, noisy, start, energy_type):
    """E of one row, from the definition: separate calls, plain sums, the start token in front."""
    # log p_theta(. | x_t) and log p_AR(. | x_<i) at every position: (L, V)
    log_theta = masked_log_probs(model.denoiser(noisy[None]).logits[0])
    inputs = torch.cat([torch.tensor([start]), clean[:-1]])
    log_ar = model.energy_model(inputs[None]).logits[0, :, :12].log_softmax(-1)

    masked = noisy == MASK
    counted = masked if energy_type == "coar" else torch.ones_like(masked)
    position = torch.arange(len(clean))
    from_denoiser = (log_theta[position, clean] * masked).sum()
    from_causal = (log_ar[position, clean] * counted).sum()
    return from_denoiser - from_causal


def padded(ids, left, right):
    return torch.nn.functional.pad(ids, (left, right), value=11)


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
@pytest.mark.parametrize(
    "causal",
    [
        lambda: tiny_causal(bos_token_id=10),
        lambda: tiny_gpt2(bos_token_id=10),
    ],
)
def test_autoregressive_energy_follows_its_definition(energy_type, causal):
    model = build(tiny_denoiser(), causal(), energy_type=energy_type)
    energy = model.energy(CLEAN.unsqueeze(1), NOISY)
    for row in range(2):
        expected = by_hand(model, CLEAN[row], NOISY[row], 10, energy_type)
        torch.testing.assert_close(energy[row, 0], expected)


@torch.no_grad()
@pytest.mark.parametrize("causal", [lambda: tiny_causal(bos_token_id=10), tiny_gpt2])
@pytest.mark.parametrize("energy_type", ["ar", "coar", "nce"])
def test_padding_on_either_side_leaves_energies_alone(energy_type, causal):
    energy = randomised(EDLMEnergyModel(tiny_config())) if energy_type == "nce" else causal()
    model = build(tiny_denoiser(), energy, energy_type=energy_type)
    plain = model.energy(CLEAN.unsqueeze(1), NOISY)

    for left, right in [(2, 0), (0, 3), (1, 1)]:
        candidates = padded(CLEAN, left, right).unsqueeze(1)
        noisy = padded(NOISY, left, right)
        attention_mask = torch.nn.functional.pad(torch.ones_like(NOISY), (left, right))
        with_padding = model.energy(candidates, noisy, attention_mask=attention_mask)
        torch.testing.assert_close(with_padding, plain, rtol=0, atol=1e-4)


@torch.no_grad()
def test_rows_that_begin_with_the_start_token_are_not_given_another():
    def log_prob_of(inputs, ids):
        """The sum of log p of the tokens (1, L) under the causal model."""
        log_probs = model.energy_model(inputs).logits.log_softmax(-1)
        return log_probs.gather(-1, ids.unsqueeze(-1)).sum()

    model = build(tiny_denoiser(), tiny_gpt2(bos_token_id=10), energy_type="ar")
    first_tokens = torch.tensor([[10], [4]])
    started = torch.cat([first_tokens, CLEAN], dim=1)
    noisy = torch.cat([first_tokens, NOISY], dim=1)
    energy = model.energy(started.unsqueeze(1), noisy)

    log_theta = masked_log_probs(model(noisy).logits)
    log_theta = log_theta.gather(-1, started.unsqueeze(-1)).squeeze(-1)  # (B, L)
    log_theta = log_theta.masked_fill(noisy != MASK, 0).sum(-1)

    # log p_AR: the first row brings its start token, the second one is given one
    first = log_prob_of(started[:1, :-1], started[:1, 1:])
    torch.testing.assert_close(energy[0, 0], log_theta[0] - first)

    inputs = torch.cat([torch.tensor([[10]]), started[1:, :-1]], dim=1)
    second = log_prob_of(inputs, started[1:])
    torch.testing.assert_close(energy[1, 0], log_theta[1] - second)


@torch.no_grad()
def test_energies_of_many_candidates_equal_those_of_single_ones():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 12, (2, 7, 6), generator=generator)  # (B, k, L)
    noisy = NOISY.unsqueeze(1)
    candidates = torch.where(noisy == MASK, draws, noisy)

    for energy in (
        tiny_causal(bos_token_id=10),
        tiny_gpt2(),
        randomised(EDLMEnergyModel(tiny_config())),
    ):
        model = build(tiny_denoiser(), energy)
        together = model.energy(candidates, NOISY)
        alone = [model.energy(candidate, NOISY) for candidate in candidates.split(1, dim=1)]
        torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=0, atol=1e-4)
        assert together.std() > 0.01


@torch.no_grad()
def test_energy_of_type_none_is_zero():
    energy = build(tiny_denoiser()).energy(CLEAN.unsqueeze(1), NOISY)
    assert torch.equal(energy, torch.zeros(2, 1))


@torch.no_grad()
def test_new_nce_energy_is_a_constant_and_starts_from_the_denoiser():
    torch.manual_seed(0)
    denoiser = tiny_denoiser()
    model = build(denoiser, energy_type="nce")
    other = CLEAN.masked_fill(NOISY == MASK, 3)
    energy = model.energy(torch.stack([CLEAN, other], dim=1), NOISY)
    assert energy.std() == 0
    assert energy[0, 0] != 0

    ours = model.energy_model.state_dict()
    theirs = denoiser.backbone.state_dict()
    copied = [name for name in ours if name in theirs and "output_layer.linear" not in name]
    assert len(copied) > 20
    for name in copied:
        assert torch.equal(ours[name], theirs[name]), name

    # equal, but not the same tensor
    assert ours["vocab_embed.embedding"].data_ptr() != theirs["vocab_embed.embedding"].data_ptr()


def test_impossible_text_has_infinite_energy_not_nan():
    class Never(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            logits = torch.zeros(*input_ids.shape, 13)
            logits[..., 5] = -torch.inf
            return SimpleNamespace(logits=logits)

    model = build(Never(), Never(), energy_type="ar", mask_token_id=MASK)
    texts = torch.tensor([[[1, 5, 2], [1, 4, 2]]])
    energy = model.energy(texts, torch.full((1, 3), MASK))
    assert energy[0, 0] == torch.inf
    assert energy[0, 1].isfinite()


def test_rows_with_and_without_their_start_token_share_a_batch():
    """Tables read columns by position and ignore the attention mask (C15).

    A row must not see its neighbours.
    """

    class Position(torch.nn.Module):
        config = SimpleNamespace(bos_token_id=10)

        def forward(self, input_ids, attention_mask=None):
            assert (input_ids[:, 0] == 10).all()
            position = torch.arange(input_ids.shape[1])
            logits = position[:, None] * torch.arange(13) * 0.1  # (L, V)
            return SimpleNamespace(logits=logits.expand(len(input_ids), -1, -1))

    model = build(tiny_denoiser(), Position(), energy_type="ar")
    texts = torch.tensor([[10, 1, 5, 0], [3, 1, 2, 7]])
    noisy = torch.tensor([[10, MASK, MASK, MASK], [3, MASK, MASK, 7]])
    candidates = texts.unsqueeze(1)
    together = model.energy(candidates, noisy)
    for row in range(2):
        alone = model.energy(candidates[row : row + 1], noisy[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


def test_start_token_that_is_the_mask_starts_no_row():
    """With the mask as start token, a masked first position is still scored."""
    causal = tiny_gpt2(vocab_size=13, bos_token_id=MASK, eos_token_id=MASK)
    model = build(tiny_denoiser(), causal, energy_type="coar")
    energy = model.energy(CLEAN[1:].unsqueeze(1), NOISY[1:])
    expected = by_hand(model, CLEAN[1], NOISY[1], MASK, "coar")
    torch.testing.assert_close(energy[0, 0], expected)


def test_wrapped_energy_pads_as_the_bare_one():
    class Wrapper(torch.nn.Module):
        """Forwards all arguments as peft and torch.compile do: its signature says nothing."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.config = inner.config

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    causal = tiny_gpt2(bos_token_id=10)
    candidates = padded(CLEAN, 3, 0).unsqueeze(1)
    noisy = padded(NOISY, 3, 0)
    attention_mask = torch.nn.functional.pad(torch.ones_like(NOISY), (3, 0))

    bare = build(tiny_denoiser(), causal, energy_type="ar")
    expected = bare.energy(candidates, noisy, attention_mask=attention_mask)
    wrapped = build(tiny_denoiser(), Wrapper(causal), energy_type="ar")
    energy = wrapped.energy(candidates, noisy, attention_mask=attention_mask)
    torch.testing.assert_close(energy, expected)


def test_reveal_set_energy_of_an_autoregressive_model_needs_the_next_block():
    model = build(
        tiny_denoiser(),
        tiny_causal(bos_token_id=10),
        energy_type="ar",
        energy_scope="revealed",
    )
    noisy = torch.tensor([[3, 1, MASK, MASK, MASK, MASK]])
    block = torch.tensor([[3, 1, 4, 1, MASK, MASK]])
    energy = model.energy(block.unsqueeze(1), noisy)

    # of the two tokens of the block alone: (L, V)
    log_theta = model(noisy).logits[0, :, :12].log_softmax(-1)
    inputs = torch.tensor([[10, 3, 1, 4]])
    log_ar = model.energy_model(inputs).logits[0, :, :12].log_softmax(-1)
    expected = log_theta[2, 4] + log_theta[3, 1] - log_ar[2, 4] - log_ar[3, 1]
    torch.testing.assert_close(energy[0, 0], expected)

    for wrong in ([3, 1, MASK, 1, MASK, MASK], [3, 1, 4, MASK, 1, MASK]):
        with pytest.raises(ValueError, match="next tokens of the text"):
            model.energy(torch.tensor([[wrong]]), noisy)

    # There is visible text behind the block
    complete = torch.tensor([[[3, 1, 4, 1, 5, 2]]])
    with_end = torch.tensor([[3, 1, MASK, MASK, MASK, 2]])
    with pytest.raises(ValueError, match="next tokens of the text"):
        model.energy(complete, with_end)

    different = torch.tensor([[[3, 1, 4, 1, MASK, MASK], [3, 1, 4, 1, 5, MASK]]])
    with pytest.raises(ValueError, match="candidates of a row reveal different positions"):
        model.energy(different, noisy)


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_reveal_set_energy_of_a_row_does_not_depend_on_the_batch_or_its_padding(energy_type):
    model = build(
        tiny_denoiser(),
        tiny_gpt2(vocab_size=12),  # the mask has no row in the causal model
        energy_type=energy_type,
        energy_scope="revealed",
        mask_token_id=MASK,
    )
    noisy = torch.tensor([[3, 1, 4, 1, MASK, MASK], [3, MASK, MASK, MASK, 0, 0]])
    clean = torch.tensor(
        [
            [[3, 1, 4, 1, 5, 9], [3, 1, 4, 1, 2, 6]],
            [[3, 1, 4, MASK, 0, 0], [3, 2, 7, MASK, 0, 0]],
        ]
    )
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])

    together = model.energy(clean, noisy, attention_mask=real)
    torch.testing.assert_close(together[:1], model.energy(clean[:1], noisy[:1]))
    torch.testing.assert_close(together[1:], model.energy(clean[1:, :, :4], noisy[1:, :4]))

    # the second row with its padding on the left
    padded_left = model.energy(
        clean[1:].roll(2, -1),
        noisy[1:].roll(2, -1),
        attention_mask=real[1:].roll(2, -1),
    )
    torch.testing.assert_close(together[1:], padded_left)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"noisy_ids": torch.tensor([[99, MASK]])}, "noisy_ids holds ids from 12 to 99"),
        ({"noisy_ids": torch.tensor([[1.0, 12.0]])}, "noisy_ids is of type torch.float32"),
        ({"candidate_ids": torch.tensor([[[1, 56]]])}, "candidate_ids holds ids from 56 to 56"),
        ({"candidate_ids": torch.tensor([[[1, -1]]])}, "candidate_ids holds ids from -1 to -1"),
        (
            {"candidate_ids": torch.zeros(1, 0, 2, dtype=torch.long)},
            r"shape \(1, 0, 2\).*none of them 0",
        ),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\)"),
        ({"timesteps": torch.ones(3)}, "timesteps has 3 values"),
    ],
)
@pytest.mark.parametrize("kind", ["nce", "ar"])
def test_inputs_of_the_energy_that_do_not_fit_are_refused(kind, inputs, message):
    energy = randomised(EDLMEnergyModel(tiny_config())) if kind == "nce" else tiny_gpt2()
    model = build(tiny_denoiser(), energy)
    valid = {
        "candidate_ids": torch.tensor([[[1, 2]]]),
        "noisy_ids": torch.tensor([[1, MASK]]),
    }
    with pytest.raises(ValueError, match=message):
        model.energy(**(valid | inputs))


def test_bad_candidates_say_where():
    model = build(tiny_denoiser(), tiny_gpt2())
    with pytest.raises(ValueError, match=r"\(B, k, L\) and \(B, L\) are needed"):
        model.energy(CLEAN, NOISY)

    changed = CLEAN.clone()
    changed[1, 1] = 7
    message = "Candidate 0 of row 1 changes the visible token at position 1"
    with pytest.raises(ValueError, match=message):
        model.energy(changed.unsqueeze(1), NOISY)

    with pytest.raises(ValueError, match="still holds mask tokens"):
        model.energy(NOISY.unsqueeze(1), NOISY)
    with pytest.raises(ValueError, match="are needed"):
        randomised(EDLMEnergyModel(tiny_config()))(CLEAN[:1], NOISY)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_energies_take_integers_of_every_kind(kind):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal())
    candidates = torch.tensor([[[3, 4], [3, 5]]])
    noisy = torch.tensor([[3, 12]])
    expected = model.energy(candidates, noisy)
    assert torch.equal(model.energy(candidates.to(kind), noisy.to(kind)), expected)
    assert torch.equal(model.energy(candidates, noisy, timesteps=0.5), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate_ids": torch.tensor([[[3.0, 4.0]]])}, "candidate_ids is of type torch.float32"),
        ({"candidate_ids": torch.tensor([[[3, 40]]])}, "candidate_ids holds ids from 40 to 40"),
        ({"attention_mask": [[1, 1]]}, "attention_mask is a list"),
        ({"attention_mask": torch.tensor([[1, 2]])}, "besides 0 and 1"),
    ],
)
def test_energies_of_wrong_inputs_are_refused(changes, message):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal())
    valid = {
        "candidate_ids": torch.tensor([[[3, 4]]]),
        "noisy_ids": torch.tensor([[3, 12]]),
    }
    with pytest.raises(ValueError, match=message):
        model.energy(**(valid | changes))
