"""The published samplers, written from the papers: the baseline of `generate()`.

MDLM (arXiv 2406.07524) draws x_s ~ q(x_s | x_t) over the whole vocabulary at every position and
step. EDLM (arXiv 2410.21357, Algorithm 1) draws k complete candidates in the window, picks one by
its energy, and then draws x_s ~ q(x_s | x_t, x_0). Shapes: B rows, L positions, V vocabulary with
the mask, k candidates.

The baseline must not be slower than the official code (`diffusion.py` of
MinkaiXu/Energy-Diffusion-LLM, whose loop without an energy is the one of kuleshov-group/mdlm), or a
comparison with it would flatter `generate()`. Line by line, "official" before "here":

Calls
- Denoiser. Official: one after each change of x_t, for the whole batch, and one more at the end,
  where t = 1e-5, for what is still masked. Here: the same without the last one. The last step ends
  at t = 0 and reveals everything.
- Energy. Official: one after each change of x_t, in the window. The chosen candidate is kept for
  the steps in which nothing changes. Here: the same. It is exact, because whether a step reveals a
  position does not depend on the candidate.
- Draws of x_s in the window. Official: one that is thrown away, and one from the chosen candidate.
  Here: the second.

Caches
- Keys and values. Official: none. Here: none.

Tensors of shape (B, L, V), or (k B, L, V) for candidates
- Denoiser. Official: logits, logits less their logsumexp, exp. Here: as many, log_softmax in one
  operation.
- Draw. Official: a copy of the probabilities, noise, three operations on it, a quotient. Here: no
  copy.
- log p_theta of the candidates. Official: another copy of the probabilities. Here: none, they are a
  view.
- Chosen candidate. Official: one-hot in int64, then in float32. Here: float32 at once.
- Energy. Official: logits, logits less their logsumexp, of L - 1 tokens, because the first one has
  no score. Here: as many, of L tokens, so that the first one has a score.

Waiting for the device
- Official: for one comparison of x_s with x_t, and for the positions of visible tokens. Here: the
  same.

Where the official code departs from the paper this one does not: it prefers low energies, it adds
logarithms of p_theta, and after the window it draws from p_theta, not from a kept candidate.
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
    """MDLM ancestral sampling. With an energy, EDLM at the steps that start at t in [1 - w, 1].

    Args:
        denoiser: returns `.logits` (B, L, V) for ids (B, L). It is not conditioned on time.
        ids: (B, L), x_t at t = 1. Visible tokens are kept.
        energy: (candidates (k, B, L), x_t (B, L), log p_theta (k, B)) -> (k, B), low = likely.
        float64: draw in float64, so that the distribution is exact. Published is float32.
    """
    dtype = torch.float64 if float64 else torch.float32
    x = ids
    p_x0 = None  # p_theta(x_0 | x_t), until x_t changes
    chosen = None  # the candidate that was chosen for x_t, as probabilities, until x_t changes
    denoiser_calls = 0
    energy_calls = 0

    for n in range(num_steps, 0, -1):
        t = n / num_steps
        s = (n - 1) / num_steps
        in_window = energy is not None and t >= 1 - energy_window - 1e-9

        # 1. p_theta(x_0 | x_t), and in the window one of k candidates
        if p_x0 is None:
            p_x0 = clean_probs(denoiser, x, mask_token_id, dtype)
            denoiser_calls += 1
        if in_window and chosen is None:
            candidate = choose_candidate(p_x0, x, energy, num_candidates, generator)
            chosen = one_hot(candidate, like=p_x0)
            energy_calls += 1

        # 2. x_s ~ q(x_s | x_t, x_0)
        clean = chosen if in_window else p_x0
        x_s = reverse_step(clean, x, t, s, mask_token_id, generator)

        # 3. What the networks said is kept while no token of the whole batch changes
        if not torch.equal(x_s, x):
            p_x0 = None
            chosen = None
        x = x_s

    assert not (x == mask_token_id).any()  # s = 0 gives the mask the weight zero
    return Sample(x, denoiser_calls, energy_calls)


def clean_probs(denoiser: nn.Module, x: torch.LongTensor, mask_token_id: int, dtype: torch.dtype) -> torch.Tensor:
    """exp of the SUBS log-probabilities (B, L, V): no mask token, visible tokens carried over."""
    logits = raw_logits(denoiser, x).to(dtype)
    logits[..., mask_token_id] = -torch.inf
    log_probs = logits.log_softmax(-1)

    visible = x != mask_token_id
    log_probs[visible] = -torch.inf
    log_probs[visible, x[visible]] = 0
    return log_probs.exp()


def sample_categorical(weights: torch.Tensor, generator: torch.Generator | None) -> torch.LongTensor:
    """Draw from unnormalised weights q (..., V): argmax q / (1e-10 - log(u + 1e-10))."""
    u = torch.rand(
        weights.shape,
        dtype=weights.dtype,
        device=weights.device,
        generator=generator,
    )

    # -log u is exponential. The official code has 1e-10 in both places, against log 0 and division by 0
    exponential = 1e-10 - (u + 1e-10).log()
    return (weights / exponential).argmax(-1)


def reverse_step(p_x0, x, t: float, s: float, mask_token_id: int, generator) -> torch.LongTensor:
    """x_s (B, L) ~ q(x_s | x_t), in proportion p_x0 (t - s) for the tokens and s for the mask."""
    # The common factor 1/t is left out: the weights need not sum to one
    q_xs = p_x0 * (t - s)
    q_xs[..., mask_token_id] = s
    drawn = sample_categorical(q_xs, generator)

    # Visible tokens are drawn too, as in the official code, and carried over
    return torch.where(x == mask_token_id, drawn, x)


def choose_candidate(p_x0, x, energy: Callable, num_candidates: int, generator) -> torch.LongTensor:
    """One (B, L) of k candidates ~ p_theta(. | x_t), chosen with probability softmax(-E)."""
    # (k, B, L, V), a view
    p_x0 = p_x0.expand(num_candidates, *p_x0.shape)
    candidates = sample_categorical(p_x0, generator)

    # log p_theta(x_0 | x_t) of every candidate, (k, B)
    p_tokens = p_x0.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    proposal = p_tokens.log().sum(-1)
    energies = energy(candidates, x, proposal)

    # (B, k) -> (B,)
    weights = (-energies).softmax(0).T.to(p_x0.dtype)
    chosen = sample_categorical(weights, generator)

    # (k, B, L) -> (B, L)
    rows = torch.arange(len(x), device=x.device)
    return candidates[chosen, rows]


def one_hot(ids: torch.LongTensor, like: torch.Tensor) -> torch.Tensor:
    """Probability one for every id (B, L), with the shape, dtype and device of `like` (B, L, V)."""
    return torch.zeros_like(like).scatter_(-1, ids.unsqueeze(-1), 1)


class AutoregressiveEnergy:
    """E_AR = -log p_AR(x_0) + log p_theta(x_0 | x_t).

    With `carry_over` it is E_coAR, where visible tokens count nothing in log p_AR.

    All k B sequences run at once, with logits and log-softmax of shape (k B, L, V). The softmax
    leaves out what the denoiser cannot emit: the mask, and ids from `vocab_size` on.
    """

    def __init__(self, causal_lm, vocab_size: int, mask_token_id: int, start_token_id: int, carry_over: bool = False):
        self.causal_lm = causal_lm
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.start_token_id = start_token_id
        self.carry_over = carry_over

    def __call__(self, candidates: torch.LongTensor, x: torch.LongTensor, proposal: torch.Tensor) -> torch.Tensor:
        """Candidates (k, B, L), x_t (B, L) and log p_theta (k, B) -> (k, B)."""
        # (k B, L), the start token in front
        sequences = candidates.flatten(0, 1)
        inputs = nn.functional.pad(sequences[:, :-1], (1, 0), value=self.start_token_id)

        # (k B, L, V)
        logits = at_least_float32(raw_logits(self.causal_lm, inputs))
        logits[..., self.mask_token_id] = -torch.inf
        logits[..., self.vocab_size :] = -torch.inf
        log_probs = logits.log_softmax(-1)

        # log p_AR of every token, (k, B, L)
        log_probs = log_probs.gather(-1, sequences.unsqueeze(-1)).view(candidates.shape)
        if self.carry_over:
            log_probs = torch.where(x == self.mask_token_id, log_probs, 0)
        return proposal - log_probs.sum(-1)


def raw_logits(network: nn.Module, ids: torch.LongTensor) -> torch.Tensor:
    """(B, L, V) logits. Our own networks make no copy of them and build no cache of keys."""
    if hasattr(network, "backbone"):
        output = network.backbone(input_ids=ids, use_cache=False)
        head = network.get_output_embeddings()
        return head(output.last_hidden_state)
    return network(input_ids=ids).logits


__all__ = ["AutoregressiveEnergy", "Sample", "sample_published"]
