"""Bias of finitely many candidates and steps, in either scope, and how it falls.

Invariants C6, C7 and C11. The functions are the shipped ones.
"""

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    STATES,
    L,
    chain_law,
    marginals,
    one_at_a_time_law,
    perturbed,
    product_law,
    random_joint,
    state_index,
)

from edlm_hf.modeling.importance_weights import importance_weights
from edlm_hf.modeling.masked_diffusion import (
    make_schedule,
    reveal_probability,
    sample_categorical,
    uniform,
)


def test_resampling_bias_falls_with_the_number_of_candidates():
    """TV to the target falls like 1/k, KL like 1/k^2, and p_k <= k p_theta (C6).

    p_k(x) = E[n_x w_x / sum n w] over multinomial counts n. With a = n_x w_x / k and
    S = sum n w / k, a / S = a / Z - a (S - Z) / Z^2 + a (S - Z)^2 / (S Z^2): the first two
    expectations are known exactly, the small third one is averaged over 40,000 multinomials with
    the shipped weights.
    """
    rng = np.random.default_rng(0)

    # chi-square distance 1.6 to the proposal: k = 64 is in the asymptotic regime
    target = random_joint(seed=1)
    table = perturbed(marginals(target), seed=1, scale=0.3)
    proposal = product_law(table, state_index(np.full(L, MASK)))
    ratio = target / proposal  # w, and Z = 1

    sizes = [64, 128, 256, 512, 1024]
    distances = []
    divergences = []
    for k in sizes:
        # n_x w_x / sum n w: a candidate that was drawn n_x times has the energy -log w_x - log n_x
        counts = rng.multinomial(k, proposal, size=40_000)
        with np.errstate(divide="ignore"):
            energies = torch.tensor(-np.log(ratio) - np.log(counts))
        shares = importance_weights(energies).numpy()

        s = counts @ ratio / k
        third = (shares * ((s - 1) ** 2)[:, None]).mean(0)
        law = target - (proposal * ratio**2 - proposal * ratio) / k + third
        assert abs(law.sum() - 1) < 3e-3
        assert (law <= k * proposal).all()

        distances.append(np.abs(law - target).sum() / 2)
        # This is of second order in the noise too
        divergences.append((target * np.log(target / law) - target + law).sum())

    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    assert -1.05 <= slope <= -0.75, (slope, distances)
    slope = np.polyfit(np.log(sizes), np.log(divergences), 1)[0]
    assert -2.1 <= slope <= -1.1, (slope, divergences)


class Chain:
    """A stationary Markov chain over 4 tokens and 96 positions (C7).

    Its conditionals are exact, by forward-backward.
    """

    def __init__(self, length=96):
        self.length = length
        weights = np.exp(1.8 * np.random.default_rng(0).normal(size=(4, 4)))
        self.transition = weights / weights.sum(1, keepdims=True)

        # The stationary law is the left eigenvector of the largest eigenvalue, 1
        values, vectors = np.linalg.eig(self.transition.T)
        start = np.real(vectors[:, np.argmax(np.real(values))])
        self.start = start / start.sum()

    def sample(self, n, rng):
        """Draw `n` sequences: (n, L)."""
        x = np.zeros((n, self.length), dtype=int)
        x[:, 0] = rng.choice(4, size=n, p=self.start)
        for i in range(1, self.length):
            cumulative = self.transition[x[:, i - 1]].cumsum(1)
            x[:, i] = (cumulative < rng.random((n, 1))).sum(1)
        return x

    def messages(self, x):
        """Return log q(visible) (N,) and the marginals of every position (N, L, 4).

        `x` holds 4 where a token is masked.
        """
        one_hot = np.eye(5)[x][..., :4]
        local = np.where(x[..., None] == 4, 1.0, one_hot)
        log_q = np.zeros(len(x))

        # q(x_i | visible tokens up to i), and its normaliser
        forward = np.zeros_like(local)
        message = None
        for i in range(self.length):
            predicted = self.start if i == 0 else message @ self.transition
            message = predicted * local[:, i]
            scale = message.sum(-1, keepdims=True)
            message = message / scale
            log_q = log_q + np.log(scale[:, 0])
            forward[:, i] = message

        # proportional to q(visible tokens after i | x_i)
        marginal = forward.copy()
        message = np.ones((len(x), 4))
        for i in range(self.length - 2, -1, -1):
            message = (message * local[:, i + 1]) @ self.transition.T
            message = message / message.sum(-1, keepdims=True)
            marginal[:, i] = forward[:, i] * message

        return log_q, marginal / marginal.sum(-1, keepdims=True)

    def log_q(self, x):
        """log q of complete sequences (..., L)."""
        steps = np.log(self.transition[x[..., :-1], x[..., 1:]])
        return np.log(self.start[x[..., 0]]) + steps.sum(-1)


def draws(marginal, count, generator):
    """Draw `count` sequences from the product of marginals (N, L, 4).

    Returns:
        Their tokens and the log-probabilities of these, both (N, count, L).
    """
    flat = torch.tensor(marginal).reshape(-1, 4).log()
    noise = uniform((len(flat), count), flat.device, generator)
    tokens, log_p = sample_categorical(flat, noise)

    shape = (*marginal.shape[:2], count)
    tokens = tokens.reshape(shape).transpose(1, 2).numpy()
    log_p = log_p.reshape(shape).transpose(1, 2).numpy()
    return tokens, log_p


def log_gain(energy, k):
    """log E[k w_1 / sum_j w_j], (N,), from energies of groups of k candidates (N, copies * k)."""
    weights = importance_weights(torch.tensor(energy).reshape(-1, k)).numpy()
    first = weights.reshape(len(energy), -1, k)[..., 0]
    return np.log(k * first.mean(1))


def residuals(chain, sequences, steps, k, copies, generator, rng):
    """Residual KL per sequence: sum over steps of log q(x_S|x_t) - log p(x_S|x_t), data x.

    p_k(x_S|x_t) = p_theta(x_S) E[k w_1 / sum_j w_j] with candidate 1 carrying x_S (section 6). The
    mean runs over `copies`, its logarithm is biased by less than 0.05 in sum here.

    Returns:
        One row for each of three samplers: plain, scope `sequence`, scope `revealed`.
    """
    total = np.zeros((3, len(sequences)))
    u = rng.random(sequences.shape)

    for n in range(steps, 0, -1):
        # x_t, x_s and S: (N, L)
        masked = u < n / steps
        revealed = masked & (u >= (n - 1) / steps)
        noisy = np.where(masked, 4, sequences)
        less_noisy = np.where(masked & ~revealed, 4, sequences)

        # log q(x_S|x_t) and log p_theta(x_S|x_t) of the data: (N,)
        log_visible, marginal = chain.messages(noisy)
        log_after, _ = chain.messages(less_noisy)
        log_q = log_after - log_visible
        log_p = np.log(np.take_along_axis(marginal, sequences[..., None], -1)[..., 0])
        log_proposal = np.where(revealed, log_p, 0).sum(-1)
        total[0] += log_q - log_proposal

        # candidates from the proposal: (N, copies * k, L)
        tokens, token_log_p = draws(marginal, copies * k, generator)
        candidates = np.where(masked[:, None], tokens, sequences[:, None])
        candidate_log_p = np.where(masked[:, None], token_log_p, 0)

        # scope `sequence`: candidate 1 has the data at S, the rest of M from the proposal.
        # The energy is perfect: E(x) = log p_theta(x|x_t) - log q(x|x_t)
        own = np.where(revealed[:, None], sequences[:, None], candidates)
        own_log_p = np.where(revealed[:, None], log_p[:, None], candidate_log_p).sum(-1)
        first = np.arange(copies * k) % k == 0
        x = np.where(first[:, None], own, candidates)
        x_log_p = np.where(first, own_log_p, candidate_log_p.sum(-1))
        energy = x_log_p - (chain.log_q(x) - log_visible[:, None])
        total[1] += log_q - log_proposal - log_gain(energy, k)

        # scope `revealed`: candidates live on S alone, a quarter of them suffices
        count = copies * k // 4
        x = np.where(revealed[:, None], candidates[:, :count], noisy[:, None])
        log_x, _ = chain.messages(x.reshape(-1, chain.length))
        x_log_p = np.where(revealed[:, None], token_log_p[:, :count], 0).sum(-1)
        energy = x_log_p - (log_x.reshape(len(x), -1) - log_visible[:, None])
        energy[:, ::k] = (log_proposal - log_q)[:, None]
        total[2] += log_q - log_proposal - log_gain(energy, k)

    return total


def test_weighing_the_reveal_set_beats_weighing_the_sequence():
    chain = Chain()
    rng = np.random.default_rng(1)
    sequences = chain.sample(64, rng)
    plain, sequence, revealed = residuals(
        chain,
        sequences,
        steps=8,
        k=8,
        copies=64,
        generator=torch.Generator().manual_seed(0),
        rng=rng,
    )

    for values, expected in ((plain, 3.0), (sequence, 1.5), (revealed, 0.3)):
        error = values.std() / np.sqrt(len(values))
        difference = abs(values.mean() - expected)
        assert difference < 4 * error + 0.15, (values.mean(), error, expected)

    for worse, better in ((plain, sequence), (sequence, revealed)):
        difference = worse - better
        error = difference.std() / np.sqrt(len(difference))
        assert difference.mean() > 3 * error


def test_distance_to_one_at_a_time_halves_when_steps_double():
    """TV(T-step law, one-at-a-time law) ~ 1/T for the plain chain (C11).

    The reveal probabilities are the shipped ones.
    """
    table = perturbed(marginals(random_joint(3)), 1)
    products = np.stack([product_law(table, s) for s in range(len(STATES))])
    one_by_one = one_at_a_time_law(products)
    alpha = make_schedule("loglinear").alpha

    distances = []
    for steps in (8, 16, 32):
        grid = torch.arange(steps + 1, dtype=torch.float64) / steps

        def reveal(n, grid=grid):
            alpha_s, alpha_t = alpha(grid[[n - 1, n]])
            return reveal_probability(alpha_s, alpha_t).item()

        law = chain_law(products, steps, reveal=reveal)
        distances.append(np.abs(law - one_by_one).sum() / 2)

    assert distances[0] / distances[1] == pytest.approx(2, abs=0.05 * 2)
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.05)
