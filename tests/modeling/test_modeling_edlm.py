"""The composite of any masked and any causal language model, and that it behaves like a model of transformers."""

from types import SimpleNamespace

import pytest
import torch
from composites import CLEAN, MASK, NOISY, build
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll, nelbo, paper_nll, sampler_bound


@torch.no_grad()
def test_given_parts_keep_their_weights_and_can_be_replaced():
    denoiser, causal = tiny_denoiser(), tiny_gpt2()
    before = {name: p.clone() for name, p in list(denoiser.named_parameters()) + list(causal.named_parameters())}
    model = build(denoiser, causal, energy_type="coar")
    assert model.denoiser is denoiser and model.energy_model is causal

    after = dict(list(denoiser.named_parameters()) + list(causal.named_parameters()))
    assert all(torch.equal(before[name], after[name]) for name in before)
    first = model.energy(CLEAN.unsqueeze(1), NOISY)
    model.energy_model = randomised(tiny_gpt2(), seed=9)
    assert (model.energy(CLEAN.unsqueeze(1), NOISY) - first).abs().max() > 0.01

    class Uniform(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 13))

    model.denoiser = Uniform()
    assert torch.equal(model(NOISY).logits, torch.zeros(2, 6, 13))


@torch.no_grad()
def test_shifted_logits_are_put_in_place():
    plain, shifted = build(tiny_denoiser()), build(tiny_denoiser(), logits_shift=1)
    logits = plain(NOISY).logits
    torch.testing.assert_close(shifted(NOISY).logits[:, 1:], logits[:, :-1])
    torch.testing.assert_close(shifted(NOISY).logits[:, 0], logits[:, 0])


def test_composite_loss_is_that_of_its_denoiser():
    model, labels = build(tiny_denoiser()), torch.where(NOISY == MASK, CLEAN, -100)
    torch.testing.assert_close(
        model(NOISY, labels=labels).loss,
        model.denoiser(NOISY, labels=labels).loss,
    )


def test_parts_without_configuration_say_what_they_know():
    """A table whose logits stop before the mask, an energy table without a mask row, nothing said about either."""

    class Table(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.register_buffer(
                "logits",
                torch.randn(6, rows, generator=torch.Generator().manual_seed(rows)),
            )

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(
                logits=self.logits[: input_ids.shape[1]].expand(
                    len(input_ids),
                    -1,
                    -1,
                )
            )

    model = build(Table(4), Table(4), energy_type="coar", mask_token_id=4)
    noisy = torch.tensor([[4, 1, 4, 0, 4, 4]])
    candidates = torch.where(noisy == 4, torch.tensor([[3, 0, 2, 0, 1, 0]]), noisy).unsqueeze(1)
    energy = model.energy(candidates, noisy)
    token, masked = torch.arange(6), noisy[0] == 4
    log_theta = model.denoiser.logits.log_softmax(-1)[token, candidates[0, 0]]
    # Position 0 cancels
    log_ar = model.energy_model.logits.log_softmax(-1)[token[:-1], candidates[0, 0, 1:]]
    torch.testing.assert_close(energy[0, 0], log_theta[1:][masked[1:]].sum() - log_ar[masked[1:]].sum())

    tokens = model.generate(noisy.repeat(50, 1), generator=torch.Generator().manual_seed(0))
    assert (tokens < 4).all() and model.generate(batch_size=2, max_length=6).shape == (2, 6)
    with pytest.raises(ValueError, match="how long its texts are"):
        model.generate()


def test_vocabulary_of_a_composite_is_resized_in_both_parts():
    model = build(tiny_denoiser(), tiny_causal(bos_token_id=0))
    before = model.energy(CLEAN.unsqueeze(1), NOISY)
    model.resize_token_embeddings(20, mean_resizing=False)
    assert model.config.vocab_size == 20 == model.energy_model.config.vocab_size
    assert model(NOISY).logits.shape[-1] == 20
    assert (model.energy(CLEAN.unsqueeze(1), NOISY) - before).isfinite().all()


def test_outputs_can_be_tuples():
    model = build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config())))
    assert torch.equal(model(NOISY, return_dict=False)[0], model(NOISY).logits)
    energy, _ = model.energy_model(CLEAN, NOISY, return_dict=False)
    assert torch.equal(energy, model.energy_model(CLEAN, NOISY).energy)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1\)"):
        build(tiny_denoiser())(NOISY, labels=CLEAN[:, :1])


class Timed(torch.nn.Module):
    """A plain module that cannot be called without the noise level, on which its logits depend."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(13, 13)

    def forward(self, input_ids, timesteps, attention_mask=None):
        assert timesteps.numel() in (1, len(input_ids))
        tilt = torch.linspace(0, 5, 13) * timesteps.reshape(-1, 1, 1)
        return SimpleNamespace(logits=self.table(input_ids) + tilt)


def test_timesteps_reach_a_plain_module_that_takes_them():
    model = build(Timed(), tiny_gpt2(), mask_token_id=MASK)
    sigma = torch.tensor([0.3, 2.0])
    logits = model(NOISY, timesteps=sigma).logits
    torch.testing.assert_close(logits, model.denoiser(NOISY, sigma).logits)

    low, high = (model.energy(CLEAN.unsqueeze(1), NOISY, timesteps=sigma * scale) for scale in (1, 2))
    assert not torch.allclose(low, high)


@pytest.mark.parametrize("causal", [None, tiny_gpt2])
def test_a_plain_module_that_needs_timesteps_has_texts_and_bounds(causal):
    model = build(Timed(), causal and causal(), mask_token_id=MASK)
    ragged = torch.ones_like(NOISY)
    ragged[0, 0] = 0
    for sampler in ("ancestral", "first_hitting", "top_k", "remdm"):
        model.generate(NOISY, attention_mask=ragged, max_denoising_steps=4, sampler=sampler)

    nelbo(model, CLEAN, num_samples=2)
    paper_nll(model, CLEAN)
    sampler_bound(model, CLEAN, num_steps=3, num_candidates=2, num_samples=2)
    if causal:
        autoregressive_nll(model, CLEAN)


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_a_compiled_denoiser_is_what_generates(way):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    options = {"max_length": 6, "max_denoising_steps": 2}
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    expected = model.generate(generator=torch.Generator().manual_seed(0), **options)

    if way == "in place":
        model.denoiser.compile(backend=backend)
    else:
        model.denoiser = torch.compile(model.denoiser, backend=backend)

    assert torch.equal(model.generate(generator=torch.Generator().manual_seed(0), **options), expected)
    assert calls


class Bare(torch.nn.Module):
    """A network that returns its logits in a wrong form."""

    config = SimpleNamespace(vocab_size=13, mask_token_id=12)

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, input_ids, attention_mask=None):
        return self.form(torch.zeros(*input_ids.shape, 13))


@pytest.mark.parametrize("form", [torch.clone, lambda logits: (logits,), lambda logits: {"logits": logits}])
def test_networks_that_return_no_logits_are_refused(form):
    denoiser = EDLMForMaskedDiffusion.from_components(Bare(form), mask_token_id=12)
    energy = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), Bare(form), energy_type="ar")
    for model in (denoiser, energy):
        with pytest.raises(ValueError, match=r"an object with `.logits` \(B, L, V\) is needed"):
            model.generate(max_length=4)
