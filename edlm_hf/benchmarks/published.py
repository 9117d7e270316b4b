"""The published samplers, written from the papers: what `generate()` is compared with, in law and in speed.

MDLM (arXiv 2406.07524) draws x_s ~ q(x_s | x_t) over the whole vocabulary at every position and step, and reuses its
network output as long as no token of the batch has changed. EDLM (arXiv 2410.21357, Algorithm 1) draws k complete
candidates in the window, picks one by its energy, and then draws x_s ~ q(x_s | x_t, x_0).

One thing is better than published: the times are t_n = n / T down to 0 and not to 1e-5, so that the last step reveals
everything and no additional network call is needed at the end. Shapes: B rows, L positions, V vocabulary with the
mask, k candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from edlm_hf.modeling.masked_diffusion import at_least_float32


class Sample(NamedTuple):
    """Token ids (B, L), and how often either network was called for the whole batch."""

    sequences: torch.LongTensor
    denoiser_calls: int
    energy_calls: int


@torch.no_grad()
def sample_published(
    denoiser: nn.Module,
    ids: torch.LongTensor,
    mask_token_id: int,
    num_steps: int,
    *,
    energy: Callable | None = None,
    num_candidates: int = 1,
    energy_window: float = 1.0,
    generator: torch.Generator | None = None,
    float64: bool = False,
) -> Sample:
    """MDLM ancestral sampling; with an energy the paper's EDLM at the steps that start at t in [1 - w, 1].

    Args:
        denoiser: returns `.logits` (B, L, V) for ids (B, L); not conditioned on time.
        ids: (B, L), x_t at t = 1; visible tokens are kept.
        energy: (candidates (k, B, L), x_t (B, L), log p_theta (k, B)) -> (k, B), low = likely.
        float64: draw in float64 instead of the published float32, so that the law is exact.
    """
    dtype = torch.float64 if float64 else torch.float32
    x, p_x0, denoiser_calls, energy_calls = ids, None, 0, 0
    for n in range(num_steps, 0, -1):
        t, s = n / num_steps, (n - 1) / num_steps
        if p_x0 is None:
            p_x0 = clean_probs(denoiser, x, mask_token_id, dtype)
            denoiser_calls += 1
        if energy is not None and t >= 1 - energy_window - 1e-9:
            clean = choose_candidate(p_x0, x, energy, num_candidates, generator)
            x_next = reverse_draw(one_hot(clean, p_x0), x, t, s, mask_token_id, generator)
            energy_calls += 1
        else:
            x_next = reverse_draw(p_x0, x, t, s, mask_token_id, generator)
        if not torch.equal(x_next, x):
            p_x0 = None  # the network's output is reused while no token of the whole batch has changed
        x = x_next
    assert not (x == mask_token_id).any()  # s = 0 gives the mask the weight zero
    return Sample(x, denoiser_calls, energy_calls)


def clean_probs(denoiser: nn.Module, x: torch.LongTensor, mask_token_id: int, dtype: torch.dtype) -> torch.Tensor:
    """exp of the SUBS log-probabilities, (B, L, V): no mask token, visible tokens carried over."""
    logits = raw_logits(denoiser, x).to(dtype)
    logits[..., mask_token_id] = -torch.inf
    log_probs = logits.log_softmax(-1)
    visible = x != mask_token_id
    log_probs[visible] = -torch.inf
    log_probs[visible, x[visible]] = 0
    return log_probs.exp()


def draw(weights: torch.Tensor, generator: torch.Generator | None) -> torch.LongTensor:
    """A categorical draw from unnormalised weights q (..., V) as published: argmax q / (1e-10 - log(u + 1e-10))."""
    u = torch.rand(weights.shape, dtype=weights.dtype, device=weights.device, generator=generator)
    return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)


def reverse_draw(p_x0, x, t: float, s: float, mask_token_id: int, generator) -> torch.LongTensor:
    """x_s (B, L) from q(x_s | x_t) = p_x0 (t - s) with s for the mask; visible tokens are kept."""
    q_xs = p_x0 * (t - s)
    q_xs[..., mask_token_id] = s
    return torch.where(x == mask_token_id, draw(q_xs, generator), x)


def choose_candidate(p_x0, x, energy: Callable, num_candidates: int, generator) -> torch.LongTensor:
    """One of k complete candidates (k, B, L) ~ p_theta(. | x_t), with probability softmax(-E): (B, L)."""
    candidates = draw(p_x0.expand(num_candidates, *p_x0.shape), generator)
    chosen = p_x0.expand(num_candidates, *p_x0.shape).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    energies = energy(candidates, x, chosen.log().sum(-1))
    picked = draw((-energies).softmax(0).T.to(p_x0.dtype), generator)
    return candidates[picked, torch.arange(len(x), device=x.device)]


def one_hot(ids: torch.LongTensor, like: torch.Tensor) -> torch.Tensor:
    """Probability one for every id (B, L): shape, dtype and device of `like` (B, L, V)."""
    return torch.zeros_like(like).scatter_(-1, ids.unsqueeze(-1), 1)


class AutoregressiveEnergy:
    """E_AR = -log p_AR(x_0) + log p_theta(x_0 | x_t); with `carry_over` E_coAR, where visible tokens count nothing.

    All k B sequences run at once, with logits and log-softmax of shape (k B, L, V). The softmax leaves out what the
    denoiser cannot emit: the mask, and ids from `vocab_size` on.
    """

    def __init__(self, causal_lm, vocab_size: int, mask_token_id: int, start_token_id: int, carry_over: bool = False):
        self.causal_lm, self.vocab_size, self.mask_token_id = causal_lm, vocab_size, mask_token_id
        self.start_token_id, self.carry_over = start_token_id, carry_over

    def __call__(self, candidates: torch.LongTensor, x: torch.LongTensor, proposal: torch.Tensor) -> torch.Tensor:
        """Candidates (k, B, L), x_t (B, L) and log p_theta (k, B) -> (k, B)."""
        sequences = candidates.flatten(0, 1)
        inputs = nn.functional.pad(sequences[:, :-1], (1, 0), value=self.start_token_id)
        logits = at_least_float32(raw_logits(self.causal_lm, inputs))
        logits[..., self.mask_token_id] = -torch.inf
        logits[..., self.vocab_size :] = -torch.inf
        log_probs = logits.log_softmax(-1).gather(-1, sequences.unsqueeze(-1)).view(candidates.shape)
        if self.carry_over:
            log_probs = torch.where(x == self.mask_token_id, log_probs, 0)
        return proposal - log_probs.sum(-1)


def raw_logits(network: nn.Module, ids: torch.LongTensor) -> torch.Tensor:
    """(B, L, V) logits; of our own models without the copies that their forward makes."""
    if hasattr(network, "backbone"):
        return network.get_output_embeddings()(network.backbone(input_ids=ids).last_hidden_state)
    return network(input_ids=ids).logits


__all__ = ["AutoregressiveEnergy", "Sample", "sample_published"]
