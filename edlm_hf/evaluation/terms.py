"""What bounds are sums of: the proposal at the masks, the gain of importance sampling, the joint of the paper."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edlm_hf.evaluation.log_partition import partition_terms
from edlm_hf.evaluation.noising import Noised
from edlm_hf.modeling.canvas_edlm import attention_of
from edlm_hf.modeling.denoising_edlm import Run, chunks_of, fill_candidates
from edlm_hf.modeling.masked_diffusion import check_energies, log_weights


@dataclass(frozen=True)
class Proposal:
    """p_theta(. | x_t) at the N masked positions of a batch.

    Args:
        noisy: x_t (B, L). sigma: (B,). row_of: (N,) their rows. nats: (B, L) -log p_theta^i(x_0^i | x_t), 0 elsewhere.
        vocab_size: V. features, project: what the logits at the N positions are made of, and how.
    """

    noisy: torch.LongTensor
    sigma: torch.Tensor
    row_of: torch.Tensor
    nats: torch.Tensor
    vocab_size: int
    features: torch.Tensor
    project: Callable


def proposal(model: nn.Module, run: Run, noised: Noised) -> Proposal:
    """Run the denoiser once and score the text at its masks."""
    noisy = noised.clean.masked_fill(noised.masked, model.config.mask_token_id)
    sigma = run.sigma(noised.t)
    features, project = model.features_at(noised.masked, noisy, attention_of(noised.real), sigma)
    row_of, targets, nats = noised.masked.nonzero()[:, 0], noised.clean[noised.masked], []
    for part in chunks_of(features, project):
        logits = model.proposal_logits(project(features[part]), noisy, row_of[part], run)
        nats.append(logits.logsumexp(-1) - logits.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1))
    nats = torch.cat(nats) if nats else noised.clean.new_zeros(0, dtype=torch.float32)
    spread = torch.zeros(noisy.shape, dtype=nats.dtype, device=nats.device).masked_scatter(noised.masked, nats)
    vocab_size = project(features[:0]).shape[-1]
    return Proposal(noisy, sigma, row_of, spread, vocab_size, features, project)


def draw_candidates(
    model: nn.Module,
    run: Run,
    noised: Noised,
    proposed: Proposal,
    rows: torch.Tensor,
    positions: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint draws from p_theta at `positions` (B, L) of the R `rows` (B,) bool: ids and log p, (R, count, L) each."""
    chosen = (rows.unsqueeze(1) & positions)[noised.masked]
    features, row_of = proposed.features[chosen], proposed.row_of[chosen]
    lengths = positions.sum(-1).tolist()
    uniforms = torch.cat(
        [torch.from_numpy(noised.uniforms[b].random((lengths[b], count))) for b in rows.nonzero()[:, 0].tolist()]
    )
    if features.device.type != "mps":  # which has no float64: there the draws run on the CPU
        uniforms = uniforms.to(features.device)
    tokens, log_probs = model.draw_tokens(features, proposed.project, proposed.noisy, row_of, uniforms, run)
    noisy = proposed.noisy[rows]
    nothing = torch.zeros_like(noisy, dtype=log_probs.dtype)
    return fill_candidates(noisy, positions[rows], tokens), fill_candidates(nothing, positions[rows], log_probs)


def weigh(run: Run, noised: Noised, proposed: Proposal, rows: torch.Tensor, candidates, log_probs) -> torch.Tensor:
    """Energies of candidates (R, count, L) of the R `rows` (B,) bool: (R, count) float64 on the CPU.

    Raises:
        ValueError: an energy is NaN or -inf.
    """
    real, noisy, sigma = noised.real[rows].long(), proposed.noisy[rows], proposed.sigma[rows]
    energies = run.energy(candidates, noisy, log_probs, proposed.vocab_size, real, sigma).cpu().double()
    check_energies(energies)
    return energies


def log_gain(
    model: nn.Module, run: Run, noised: Noised, proposed: Proposal, rows: torch.Tensor, copies: int
) -> torch.Tensor:
    """log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ] of the R `rows` (B,) bool -> (R,) float64."""
    rows, k = rows.to(noised.clean.device), run.config.num_candidates
    positions = noised.revealed if run.config.energy_scope == "revealed" else noised.masked
    candidates, log_probs = draw_candidates(model, run, noised, proposed, rows, positions, copies * k)
    # candidate 1 of every copy carries the text at S
    carries = noised.revealed[rows].unsqueeze(1)
    text, of_text = noised.clean[rows].unsqueeze(1), -proposed.nats[rows].unsqueeze(1).to(log_probs.dtype)
    candidates[:, ::k] = torch.where(carries, text, candidates[:, ::k])
    log_probs[:, ::k] = torch.where(carries, of_text, log_probs[:, ::k])
    energies = weigh(run, noised, proposed, rows, candidates, log_probs).view(-1, copies, k)
    # of the text, among the k of its copy
    log_shares = log_weights(energies, run.config.energy_temperature).log_softmax(-1)[..., 0]
    return math.log(k) + log_shares.logsumexp(-1) - math.log(copies)


def joint_nats(model: nn.Module, run: Run, noised: Noised, log_partition: str, partition_samples: int) -> torch.Tensor:
    """-log p_theta(x_0 | x_t) + E(x_0, x_t) + log Z(x_t), the joint over all of M: (B,) float64."""
    proposed = proposal(model, run, noised)
    nats = total(proposed.nats, noised.masked)
    if run.energy is None:
        return nats
    rows = torch.ones(len(nats), dtype=torch.bool, device=noised.clean.device)
    text = noised.clean.unsqueeze(1), -proposed.nats.unsqueeze(1)
    temperature = run.config.energy_temperature
    nats = nats + weigh(run, noised, proposed, rows, *text)[:, 0] / temperature
    if log_partition != "one":
        drawn = draw_candidates(model, run, noised, proposed, rows, noised.masked, partition_samples)
        lower, upper = partition_terms(weigh(run, noised, proposed, rows, *drawn) / temperature)
        nats = nats + (lower if log_partition == "lower" else upper)
    return nats


def total(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Sum of values (B, L) at positions (B, L) bool, in float64 on the CPU: (B,)."""
    return torch.where(positions, values, 0).cpu().double().sum(-1)
