"""Logits, normalisers and losses are in float32 under autocast, and layers of other kinds than nn.Linear are called.

Adding a constant to all logits changes no probability. Logits that were rounded to half precision would lose what is
below it: near 64, bfloat16 numbers are 0.25 apart.
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

MASK, SHIFT = 12, 64.0
TEXTS = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]
NOISY = torch.tensor([[1, 2, MASK, MASK, MASK, 6], [7, MASK, MASK, 1, 2, MASK]])
CANDIDATES = NOISY[:, None].repeat(1, 3, 1)
CANDIDATES[NOISY[:, None].expand_as(CANDIDATES) == MASK] = torch.tensor([3, 4, 5] * 6)

build = EDLMForMaskedDiffusion.from_components
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def shifted(model: nn.Module, by: float = SHIFT) -> nn.Module:
    """The same probabilities by larger logits."""
    with torch.no_grad():
        for head in {module for module in model.modules() if getattr(module, "out_features", 0) == 13}:
            head.bias += by
    return model


def with_ar() -> EDLMForMaskedDiffusion:
    return build(tiny_denoiser(), tiny_causal(bos_token_id=10))


READINGS = {
    "nelbo": lambda model: nelbo(model, TEXTS, num_samples=2).value,
    "discrete_nelbo": lambda model: discrete_nelbo(model, TEXTS, num_steps=3, num_samples=2).value,
    "sampler_bound": lambda model: sampler_bound(model, TEXTS, num_steps=3, num_candidates=3, num_samples=2).value,
    "autoregressive_nll": lambda model: autoregressive_nll(model.energy_model, [[10, *text] for text in TEXTS]).value,
    "energy": lambda model: model.energy(CANDIDATES, NOISY),
}


@half
@pytest.mark.parametrize("reading", READINGS)
def test_a_constant_added_to_all_logits_changes_nothing_under_autocast(reading, dtype):
    read = READINGS[reading]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        found, moved = torch.as_tensor(read(with_ar())), torch.as_tensor(read(shifted(with_ar())))
    torch.testing.assert_close(moved, found, rtol=1e-3, atol=1e-3)


@half
@pytest.mark.parametrize("options", [{}, {"do_sample": False}, {"sampler": "first_hitting"}], ids=str)
def test_generated_tokens_are_those_of_the_shifted_logits_under_autocast(options, dtype):
    def drawn(model):
        given = {
            "max_denoising_steps": 3,
            "num_candidates": 3,
            "generator": torch.Generator().manual_seed(0),
        }
        with torch.autocast("cpu", dtype=dtype):
            return model.generate(batch_size=8, max_length=8, **(given | options))

    assert torch.equal(drawn(with_ar()), drawn(shifted(with_ar())))


@half
def test_the_energy_of_a_network_stays_in_float32_under_autocast(dtype):
    model = randomised(build(tiny_denoiser(), energy_type="nce"))
    plain = model.energy(CANDIDATES, NOISY)
    with torch.autocast("cpu", dtype=dtype):
        mixed = model.energy(CANDIDATES, NOISY)
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, mixed.to(dtype).float())
    assert (mixed - plain).abs().max() < 0.05 * CANDIDATES.shape[-1] ** 0.5


@half
def test_losses_of_logits_in_half_precision_are_made_in_float32(dtype):
    logits, labels = torch.randn(2, 6, 13, generator=torch.Generator().manual_seed(0)).to(dtype) * 9, CANDIDATES[:, 0]
    labels = torch.where(NOISY == MASK, labels, -100)
    with torch.autocast("cpu", dtype=dtype):
        losses = masked_token_losses(logits, CANDIDATES[:, 0], NOISY == MASK, MASK)
        mean = subs_cross_entropy(logits, labels, NOISY, MASK)
    wanted = masked_token_losses(logits.double(), CANDIDATES[:, 0], NOISY == MASK, MASK)
    torch.testing.assert_close(losses, wanted.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        mean,
        (wanted.sum() / (NOISY == MASK).sum()).float(),
        rtol=1e-5,
        atol=1e-5,
    )


class Int8Linear(nn.Module):
    """A linear layer whose weight is of integers, as quantisers make them."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale, self.bias = nn.Parameter(scale, requires_grad=False), linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.float() * self.scale, self.bias)


class Int8Embedding(nn.Module):
    """An embedding of the same kind."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        weight = embedding.weight.detach()
        self.scale = nn.Parameter(weight.abs().amax(1, keepdim=True) / 127, requires_grad=False)
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.num_embeddings = embedding.num_embeddings

    def forward(self, ids):
        return self.weight[ids].float() * self.scale[ids]


def quantised(model: nn.Module, part: str) -> nn.Module:
    """A copy with layers of integers in the trunk, the head, the embedding, or everywhere."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        for child, layer in list(module.named_children()):
            place = "head" if "output_layer" in name and child == "linear" else "trunk"
            if isinstance(layer, nn.Linear) and part in (place, "everywhere"):
                setattr(module, child, Int8Linear(layer))
            if isinstance(layer, nn.Embedding) and part in ("embedding", "everywhere"):
                setattr(module, child, Int8Embedding(layer))

    return model


@pytest.mark.parametrize("conditioned", [False, True], ids=["plain", "conditioned on time"])
@pytest.mark.parametrize("part", ["trunk", "head", "embedding", "everywhere"])
def test_layers_of_integers_cost_what_their_rounding_costs(part, conditioned):
    denoiser = tiny_denoiser(time_conditioning=conditioned)
    small, sigma = quantised(denoiser, part), torch.tensor([0.3, 2.0])
    with torch.no_grad():
        wanted, found = (model(NOISY, timesteps=sigma).logits for model in (denoiser, small))
    error = (found - wanted).abs().max()
    assert 0 < error < 0.05 * wanted.std(), error

    one, other = (nelbo(model, TEXTS, num_samples=2).value for model in (denoiser, small))
    assert other == pytest.approx(one, abs=0.05)
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
    wanted, found = model.energy(CANDIDATES, NOISY), small.energy(CANDIDATES, NOISY)
    assert (found - wanted).abs().max() < 0.05 * (1 + wanted.abs().max())
    assert (small.generate(NOISY, max_denoising_steps=2, num_candidates=2) != MASK).all()
