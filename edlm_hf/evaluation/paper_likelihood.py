"""The estimator of the paper's tables, which is not a bound."""

from collections.abc import Callable

import torch
from torch import nn

from edlm_hf.evaluation.likelihood import PLAIN_SAMPLING, check_options, reverse_process
from edlm_hf.evaluation.log_partition import partition_terms
from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import LikelihoodEstimate, likelihood_estimate, sum_at
from edlm_hf.evaluation.step_costs import checked_energies, propose
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.modeling.energies import Candidates
from edlm_hf.modeling.generation_config_edlm import given_whole_number
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.reverse_chain import ReverseProcess
from edlm_hf.modeling.sampler_choice import PARAMETERS
from edlm_hf.modeling.samplers import FirstHitting


def paper_nll(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    energy: Callable | None = None,
    log_partition: str = "one",
    partition_samples: int = 16,
    scored=None,
    num_samples: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
    **generation_options,
) -> LikelihoodEstimate:
    """The estimator of the paper's tables: E int_0^1 (1/t) [-log p_theta(x_0|x_t) + E(x_0, x_t) + log Z(x_t)] dt.

    WARNING: *not* an upper bound on the negative log-likelihood. It integrates the joint over all of
    M where a sampler reveals a part of it, and can fall below the entropy of the data (two equal fair
    bits: entropy 1 bit, estimator 1/2). For EDLM-coAR it is the AR model's likelihood whatever the
    denoiser. Use `sampler_bound` for claims.

    Without masks the bracket is exactly 0. (The published code adds the AR energy of the visible text
    there, which diverges.)

    The arguments that are not listed are those of `sampler_bound` and `nelbo`.

    Args:
        log_partition: `one` takes Z = 1, as the published validation code does (exact for coAR).
            `lower` and `upper` are the estimates of `log_partition_bounds`.
        partition_samples: proposals for these estimates.

    Raises:
        ValueError: as `nelbo`, an unknown `log_partition`, a sampler, or an energy of scope `revealed`.
    """
    if log_partition not in ("one", "lower", "upper"):
        raise ValueError(f"log_partition is {log_partition!r}, but it must be one of one, lower, upper.")
    partition_samples = given_whole_number("partition_samples", partition_samples, 2)
    check_options(generation_options)
    if unused := sorted(set(generation_options) & ({"sampler"} | PARAMETERS)):
        raise ValueError(
            f"The paper's estimator has no sampler, so that there is no use for {', '.join(unused)}. Leave it out, or "
            "take sampler_bound."
        )

    # No candidate is drawn, but with num_candidates=1 no energy would act
    options = PLAIN_SAMPLING | generation_options | {"sampler": "ancestral", "num_candidates": 2}
    process = reverse_process(model, options, energy)
    texts = read_texts(model.config, input_ids, attention_mask, scored)
    noising = Noising(texts, process.schedule, num_samples, batch_size, seed, distributed)
    if process.config.energy_scope == "revealed":
        raise ValueError("The paper's estimator takes the joint over all masks: it needs energy_scope='sequence'.")

    def nats(noised: Noised) -> torch.Tensor:
        # The sum over numbers of masks n, with the weight 1 / n, in place of int (1/t) dt: (B,)
        num_masks = noised.masked.sum(-1).cpu()
        per_mask = noised.chance.sum(-1) / num_masks
        joint = joint_nats(process, noised, log_partition, partition_samples)
        return noised.weight * per_mask * joint

    batches = noising.random_steps(FirstHitting(), device_of(model))
    return likelihood_estimate(model, noising, batches, nats, progress_bar)


def joint_nats(
    process: ReverseProcess,
    noised: Noised,
    log_partition: str,
    partition_samples: int,
) -> torch.Tensor:
    """-log p_theta(x_0 | x_t) + E(x_0, x_t) + log Z(x_t), the joint over all of M: (B,) float64."""
    proposal = propose(process, noised)
    text_nats = proposal.nats(noised.clean)  # (B, L)
    nats = sum_at(noised.masked, text_nats)
    if process.energy is None:
        return nats

    # E(x_0, x_t) / tau, with the text as the only candidate
    temperature = process.config.energy_temperature
    text = Candidates(noised.clean.unsqueeze(1), -text_nats.unsqueeze(1))  # (B, 1, L)
    text_energies = checked_energies(process, text, proposal)[:, 0]
    nats = nats + text_energies / temperature
    if log_partition == "one":
        return nats

    # n proposals from p_theta, (B, n, L)
    uniforms = noised.noise.per_draw(noised.rows, proposal.positions, partition_samples)
    candidates = process.candidates(proposal, uniforms, proposal.positions)

    # log Z from their energies, (B, n) -> (B,)
    energies = checked_energies(process, candidates, proposal)
    lower, upper = partition_terms(energies / temperature)
    log_z = lower if log_partition == "lower" else upper
    return nats + log_z
