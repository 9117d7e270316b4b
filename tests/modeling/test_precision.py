"""Logits, normalisers and losses are in float32 under autocast.

Adding a constant to all logits changes no probability. Logits that were rounded to half precision
would lose the digits below it: near 64, bfloat16 numbers are 0.25 apart. Layers of other kinds
than nn.Linear are called, too.
"""

import copy

import pytest
import torch
from published import randomised, tiny_causal, tiny_denoiser
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, nelbo, sampler_bound
from edlm_hf.modeling.masked_diffusion import subs_cross_entropy
from edlm_hf.training.objectives import masked_token_losses

MASK = 12
SHIFT = 64.0
TEXTS = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]
NOISY = torch.tensor([[1, 2, MASK, MASK, MASK, 6], [7, MASK, MASK, 1, 2, MASK]])
MASKED = NOISY == MASK
CANDIDATES = NOISY.unsqueeze(1).repeat(1, 3, 1)  # (B, k, L)
CANDIDATES[CANDIDATES == MASK] = torch.tensor([3, 4, 5] * 6)

build = EDLMForMaskedDiffusion.from_components
half = pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16],
    ids=["bfloat16", "float16"],
)


def shifted(model: nn.Module, by: float = SHIFT) -> nn.Module:
    """Give a model the same probabilities by larger logits."""
    # a set, as both networks may share their head
    heads = {module for module in model.modules() if getattr(module, "out_features", 0) == 13}
    with torch.no_grad():
        for head in heads:
            head.bias += by
    return model


def with_ar() -> EDLMForMaskedDiffusion:
    return build(tiny_denoiser(), tiny_causal(bos_token_id=10))


def continuous_bound(model):
    return nelbo(model, TEXTS, num_samples=2).value


def discrete_bound(model):
    return discrete_nelbo(model, TEXTS, num_steps=3, num_samples=2).value


def bound_of_sampler(model):
    bound = sampler_bound(model, TEXTS, num_steps=3, num_candidates=3, num_samples=2)
    return bound.value


def nll_of_causal(model):
    texts = [[10, *text] for text in TEXTS]
    return autoregressive_nll(model.energy_model, texts).value


READINGS = {
    "nelbo": continuous_bound,
    "discrete_nelbo": discrete_bound,
    "sampler_bound": bound_of_sampler,
    "autoregressive_nll": nll_of_causal,
    "energy": lambda model: model.energy(CANDIDATES, NOISY),
}


@half
@pytest.mark.parametrize("reading", READINGS)
def test_a_constant_added_to_all_logits_changes_nothing_under_autocast(reading, dtype):
    read = READINGS[reading]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        plain = torch.as_tensor(read(with_ar()))
        moved = torch.as_tensor(read(shifted(with_ar())))
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-3)


@half
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": False}, {"sampler": "first_hitting"}],
    ids=str,
)
def test_generated_tokens_are_those_of_the_shifted_logits_under_autocast(options, dtype):
    def drawn(model):
        arguments = {
            "batch_size": 8,
            "max_length": 8,
            "max_denoising_steps": 3,
            "num_candidates": 3,
            "generator": torch.Generator().manual_seed(0),
        }
        with torch.autocast("cpu", dtype=dtype):
            return model.generate(**(arguments | options))

    assert torch.equal(drawn(with_ar()), drawn(shifted(with_ar())))


@half
def test_the_energy_of_a_network_stays_in_float32_under_autocast(dtype):
    model = randomised(build(tiny_denoiser(), energy_type="nce"))
    plain = model.energy(CANDIDATES, NOISY)
    with torch.autocast("cpu", dtype=dtype):
        mixed = model.energy(CANDIDATES, NOISY)

    # more digits than half precision has
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, mixed.to(dtype).float())
    assert (mixed - plain).abs().max() < 0.05 * CANDIDATES.shape[-1] ** 0.5


@half
def test_losses_of_logits_in_half_precision_are_made_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 13, generator=generator).to(dtype) * 9
    clean = CANDIDATES[:, 0]
    labels = torch.where(MASKED, clean, -100)
    with torch.autocast("cpu", dtype=dtype):
        losses = masked_token_losses(logits, clean, MASKED, MASK)
        mean = subs_cross_entropy(logits, labels, NOISY, MASK)

    expected = masked_token_losses(logits.double(), clean, MASKED, MASK)
    torch.testing.assert_close(losses, expected.float(), rtol=1e-5, atol=1e-5)
    expected_mean = expected.sum() / MASKED.sum()
    torch.testing.assert_close(mean, expected_mean.float(), rtol=1e-5, atol=1e-5)


def in_integers(weight: torch.Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Round a weight to int8, with one scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    integers = (weight / scale).round().to(torch.int8)
    return (
        nn.Parameter(integers, requires_grad=False),
        nn.Parameter(scale, requires_grad=False),
    )


class Int8Linear(nn.Module):
    """A linear layer whose weight is of integers, as quantisers make them."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.scale = in_integers(linear.weight.detach())
        self.bias = linear.bias
        self.in_features = linear.in_features
        self.out_features = linear.out_features

    def forward(self, x):
        weight = self.weight.float() * self.scale
        return nn.functional.linear(x.float(), weight, self.bias)


class Int8Embedding(nn.Module):
    """An embedding whose weight is of integers, too."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.weight, self.scale = in_integers(embedding.weight.detach())
        self.num_embeddings = embedding.num_embeddings

    def forward(self, ids):
        return self.weight[ids].float() * self.scale[ids]


def quantised(model: nn.Module, part: str) -> nn.Module:
    """Copy a model, with layers of integers in a part of it.

    The part is the trunk, the head, the embedding, or everywhere.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        for child, layer in list(module.named_children()):
            is_head = "output_layer" in name and child == "linear"
            part_of_layer = "head" if is_head else "trunk"
            if isinstance(layer, nn.Linear) and part in (part_of_layer, "everywhere"):
                setattr(module, child, Int8Linear(layer))
            if isinstance(layer, nn.Embedding) and part in ("embedding", "everywhere"):
                setattr(module, child, Int8Embedding(layer))

    return model


@pytest.mark.parametrize("conditioned", [False, True], ids=["plain", "conditioned on time"])
@pytest.mark.parametrize("part", ["trunk", "head", "embedding", "everywhere"])
def test_layers_of_integers_cost_what_their_rounding_costs(part, conditioned):
    denoiser = tiny_denoiser(time_conditioning=conditioned)
    small = quantised(denoiser, part)
    sigma = torch.tensor([0.3, 2.0])
    with torch.no_grad():
        expected = denoiser(NOISY, timesteps=sigma).logits
        found = small(NOISY, timesteps=sigma).logits
    error = (found - expected).abs().max()
    assert 0 < error < 0.05 * expected.std(), error

    assert continuous_bound(small) == pytest.approx(continuous_bound(denoiser), abs=0.05)
    assert (small.generate(NOISY, max_denoising_steps=2) != MASK).all()


@pytest.mark.parametrize("part", ["trunk", "head", "embedding", "everywhere"])
@pytest.mark.parametrize("kind", ["own", "shared", "ar"])
def test_energies_of_layers_of_integers_are_near_those_of_floats(kind, part):
    if kind == "ar":
        model = with_ar()
    else:
        choices = {"energy_weights": "shared"} if kind == "shared" else {}
        model = randomised(build(tiny_denoiser(), energy_type="nce", **choices))

    small = quantised(model, part)
    expected = model.energy(CANDIDATES, NOISY)
    error = (small.energy(CANDIDATES, NOISY) - expected).abs().max()
    assert error < 0.05 * (1 + expected.abs().max())

    tokens = small.generate(NOISY, max_denoising_steps=2, num_candidates=2)
    assert (tokens != MASK).all()
