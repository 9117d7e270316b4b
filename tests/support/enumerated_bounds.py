"""Cross-entropies of every text under every set of masks on the exact test-bed, and the bounds that they give."""

import itertools
import math

import numpy as np
import torch
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    TableDenoiser,
    marginals,
    perturbed,
    product_law,
    random_joint,
    state_index,
)

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation.noising import Noised, RowNoise
from edlm_hf.evaluation.step_costs import propose

JOINT = random_joint()
ENTROPY = -(JOINT * np.log(JOINT)).sum()
MARGINALS = marginals(JOINT)
PERTURBED = perturbed(MARGINALS, seed=1)
ALL = torch.tensor(SEQUENCES)
# (15, L)
ALL_MASKS = np.array([mask for mask in itertools.product([False, True], repeat=L) if any(mask)])


def model(table=PERTURBED, energy=None, **choices) -> EDLMForMaskedDiffusion:
    return EDLMForMaskedDiffusion.from_components(
        TableDenoiser(table),
        energy,
        mask_token_id=MASK,
        **choices,
    )


def draws(count: int, seed: int = 0) -> torch.Tensor:
    """Texts from q_0, (count, L)."""
    return ALL[np.random.default_rng(seed).choice(81, p=JOINT, size=count)]


def noised(clean, masked, t) -> Noised:
    """Rows with given masks."""
    count = len(clean)
    t = torch.as_tensor(t, dtype=torch.float64).expand(count)
    real = torch.ones_like(masked)
    chance = masked.double()
    return Noised(torch.arange(count), clean, real, real, masked, masked, chance, t, torch.ones(count), RowNoise([]))


def nats_at(process, rows) -> torch.Tensor:
    """-log p_theta^i(x_0^i | x_t) at the masks of the rows, (B, L)."""
    return propose(process, rows).nats(rows.clean)


def every_mask(network, nats) -> np.ndarray:
    """nats(process, rows) of every sequence with every non-empty set of masks: (81, 15)."""
    process = network.reverse_process()
    clean = ALL.repeat_interleave(len(ALL_MASKS), 0)
    masked = torch.tensor(ALL_MASKS).repeat(81, 1)
    return nats(process, noised(clean, masked, 0.5)).numpy().reshape(81, len(ALL_MASKS))


def denoiser_nats(network) -> np.ndarray:
    return every_mask(network, lambda process, rows: nats_at(process, rows).sum(-1))


def continuous(nats: np.ndarray) -> np.ndarray:
    """int_0^1 (1/t) E[nats] dt by enumeration: (81, 15) -> (81,); int t^(n-1) (1-t)^(L-n) dt = (n-1)! (L-n)! / L!."""
    n = ALL_MASKS.sum(-1)
    return nats @ np.array([math.factorial(k - 1) * math.factorial(L - k) / math.factorial(L) for k in n])


def stepwise(nats: np.ndarray, steps: int, reveal=lambda n: 1 / n) -> np.ndarray:
    """sum_n r_n E[nats at t_n] by enumeration for log-linear noise: (81,)."""
    masked = ALL_MASKS.sum(-1)
    shares = np.arange(1, steps + 1)[:, None] / steps
    chances = shares**masked * (1 - shares) ** (L - masked)  # (T, 15)
    return nats @ (np.array([reveal(n) for n in range(1, steps + 1)]) @ chances)


def table_energy(energies: np.ndarray):
    """E(x, x_t) = energies[state, sequence] as a callable."""

    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        sequence = candidate_ids.numpy() @ (3 ** np.arange(L)[::-1])
        return torch.tensor(energies[state_index(noisy_ids.numpy())[:, None], sequence])

    return energy


PRODUCTS = np.stack([product_law(PERTURBED, s) for s in range(len(STATES))])
ENERGY = np.random.default_rng(3).normal(size=PRODUCTS.shape)


def marginalised_bound(joint_at, steps: int) -> float:
    """sum_n E_{x_t} E_S[-log P(x_0^S | x_t)] by enumeration, nats per token over all sequences alike."""
    bound = 0.0
    for n in range(1, steps + 1):
        t, r, joints = n / steps, 1 / n, joint_at(n)
        for mask in ALL_MASKS:
            noisy = np.where(mask, MASK, SEQUENCES)
            of_mask = t ** mask.sum() * (1 - t) ** (L - mask.sum())
            joint = joints[state_index(noisy)]  # (81, 81)

            for revealed in itertools.product([False, True], repeat=L):
                revealed = np.array(revealed)
                if (revealed & ~mask).any() or not revealed.any():
                    continue
                chance = r ** revealed.sum() * (1 - r) ** (mask.sum() - revealed.sum())
                agree = (SEQUENCES[:, None][:, :, revealed] == SEQUENCES[None][:, :, revealed]).all(-1)
                bound += of_mask * chance * -np.log((joint * agree).sum(-1)).mean() / L

    return bound
