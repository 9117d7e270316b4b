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

    p_k(x) = E[n_x w_x / sum n w] over multinomial counts n. With a = n_x w_x / k and S = sum n w / k,
    a / S = a / Z - a (S - Z) / Z^2 + a (S - Z)^2 / (S Z^2): the first two expectations are known exactly, the small
    third one is averaged over 40,000 multinomials with the shipped weights.
    """
    rng = np.random.default_rng(0)
    # chi-square distance 1.6 to the proposal: k = 64 is in the asymptotic regime
    target = random_joint(seed=1)
    p = product_law(perturbed(marginals(target), seed=1, scale=0.3), state_index(np.full(L, MASK)))
    w = target / p

    sizes, distances, divergences = [64, 128, 256, 512, 1024], [], []
    for k in sizes:
        counts = rng.multinomial(k, p, size=40_000)
        with np.errstate(divide="ignore"):
            energies = torch.tensor(-np.log(w) - np.log(counts))
        shares = importance_weights(energies).numpy()  # n_x w_x / sum n w
        s = counts @ w / k  # Z = 1
        third = (shares * ((s - 1) ** 2)[:, None]).mean(0)
        law = target - (p * w**2 - p * w) / k + third
        assert abs(law.sum() - 1) < 3e-3 and (law <= k * p).all()

        distances.append(np.abs(law - target).sum() / 2)
        # This is of second order in the noise too
        divergences.append((target * np.log(target / law) - target + law).sum())

    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    assert -1.05 <= slope <= -0.75, (slope, distances)
    slope = np.polyfit(np.log(sizes), np.log(divergences), 1)[0]
    assert -2.1 <= slope <= -1.1, (slope, divergences)


class Chain:
    """A stationary Markov chain over 4 tokens and 96 positions, with exact conditionals by forward-backward (C7)."""

    def __init__(self, length=96):
        rng = np.random.default_rng(0)
        a = np.exp(1.8 * rng.normal(size=(4, 4)))
        self.a, self.length = a / a.sum(1, keepdims=True), length
        values, vectors = np.linalg.eig(self.a.T)
        start = np.real(vectors[:, np.argmax(np.real(values))])
        self.start = start / start.sum()

    def sample(self, n, rng):
        x = np.zeros((n, self.length), dtype=int)
        x[:, 0] = rng.choice(4, size=n, p=self.start)
        for i in range(1, self.length):
            x[:, i] = (self.a[x[:, i - 1]].cumsum(1) < rng.random((n, 1))).sum(1)
        return x

    def messages(self, x):
        """log q(visible) (N,) and the marginals of every position (N, L, 4). `x` holds 4 where a token is masked."""
        local = np.where(x[..., None] == 4, 1.0, np.eye(5)[x][..., :4])
        forward, log_q, f = np.zeros_like(local), np.zeros(len(x)), None
        for i in range(self.length):
            f = (self.start if i == 0 else f @ self.a) * local[:, i]
            scale = f.sum(-1, keepdims=True)
            f, log_q = f / scale, log_q + np.log(scale[:, 0])
            forward[:, i] = f

        marginal, b = forward.copy(), np.ones((len(x), 4))
        for i in range(self.length - 2, -1, -1):
            b = (b * local[:, i + 1]) @ self.a.T
            b = b / b.sum(-1, keepdims=True)
            marginal[:, i] = forward[:, i] * b

        return log_q, marginal / marginal.sum(-1, keepdims=True)

    def log_q(self, x):
        """log q of complete sequences (..., L)."""
        return np.log(self.start[x[..., 0]]) + np.log(self.a[x[..., :-1], x[..., 1:]]).sum(-1)


def draws(marginal, count, generator):
    """`count` sequences from the product of marginals (N, L, 4): (N, count, L) and their log-probabilities."""
    flat = torch.tensor(marginal).reshape(-1, 4).log()
    tokens, log_p = sample_categorical(flat, uniform((len(flat), count), flat.device, generator))
    shape = (*marginal.shape[:2], count)
    return (x.reshape(shape).transpose(1, 2).numpy() for x in (tokens, log_p))


def residuals(chain, sequences, steps, k, copies, generator, rng):
    """Residual KL per sequence: sum over steps of log q(x_S|x_t) - log p(x_S|x_t), data x, for three samplers.

    p_k(x_S|x_t) = p_theta(x_S) E[k w_1 / sum_j w_j] with candidate 1 carrying x_S (section 6). The mean runs over
    `copies`, its logarithm is biased by less than 0.05 in sum here.
    """
    total = np.zeros((3, len(sequences)))
    u = rng.random(sequences.shape)
    for n in range(steps, 0, -1):
        masked, revealed = u < n / steps, (u < n / steps) & (u >= (n - 1) / steps)
        noisy = np.where(masked, 4, sequences)
        log_visible, marginal = chain.messages(noisy)
        log_after, _ = chain.messages(np.where(masked & ~revealed, 4, sequences))
        log_p = np.log(np.take_along_axis(marginal, sequences[..., None], -1)[..., 0])
        log_q = log_after - log_visible
        log_proposal = np.where(revealed, log_p, 0).sum(-1)
        total[0] += log_q - log_proposal
        tokens, token_log_p = draws(marginal, copies * k, generator)
        candidates = np.where(masked[:, None], tokens, sequences[:, None])
        of_masked = np.where(masked[:, None], token_log_p, 0)

        # scope `sequence`: candidate 1 has the data at S, the rest of M from the proposal; perfect energy
        own = np.where(revealed[:, None], sequences[:, None], candidates)
        own_log_p = np.where(revealed[:, None], log_p[:, None], of_masked).sum(-1)
        first = np.arange(copies * k) % k == 0
        x = np.where(first[:, None], own, candidates)
        energy = np.where(first, own_log_p, of_masked.sum(-1)) - (chain.log_q(x) - log_visible[:, None])
        weights = (
            importance_weights(torch.tensor(energy).reshape(-1, k))
            .numpy()
            .reshape(
                len(x),
                copies,
                k,
            )
        )
        total[1] += log_q - log_proposal - np.log(k * weights[..., 0].mean(1))

        # scope `revealed`: candidates live on S alone
        count = copies * k // 4
        partial = np.where(revealed[:, None], candidates[:, :count], noisy[:, None])
        log_s, _ = chain.messages(partial.reshape(-1, chain.length))
        energy = np.where(revealed[:, None], token_log_p[:, :count], 0).sum(-1)
        energy = energy - (log_s.reshape(len(x), -1) - log_visible[:, None])
        energy[:, ::k] = (log_proposal - log_q)[:, None]
        weights = importance_weights(torch.tensor(energy).reshape(-1, k)).numpy().reshape(len(x), -1, k)
        total[2] += log_q - log_proposal - np.log(k * weights[..., 0].mean(1))

    return total


def test_weighing_the_reveal_set_beats_weighing_the_sequence():
    chain, rng = Chain(), np.random.default_rng(1)
    sequences = chain.sample(64, rng)
    plain, sequence, revealed = residuals(
        chain, sequences, steps=8, k=8, copies=64, generator=torch.Generator().manual_seed(0), rng=rng
    )
    for values, expected in ((plain, 3.0), (sequence, 1.5), (revealed, 0.3)):
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * error + 0.15, (values.mean(), error, expected)

    for worse, better in ((plain, sequence), (sequence, revealed)):
        difference = worse - better
        assert difference.mean() > 3 * difference.std() / np.sqrt(len(difference))


def test_distance_to_one_at_a_time_halves_when_steps_double():
    """TV(T-step law, one-at-a-time law) ~ 1/T for the plain chain, with the shipped reveal probabilities (C11)."""
    products = np.stack([product_law(perturbed(marginals(random_joint(3)), 1), s) for s in range(len(STATES))])
    alpha = make_schedule("loglinear").alpha

    def law(steps):
        grid = torch.arange(steps + 1, dtype=torch.float64) / steps
        return chain_law(
            products,
            steps,
            reveal=lambda n: reveal_probability(*alpha(grid[[n - 1, n]])).item(),
        )

    one_by_one = one_at_a_time_law(products)
    distances = [np.abs(law(steps) - one_by_one).sum() / 2 for steps in (8, 16, 32)]
    assert distances[0] / distances[1] == pytest.approx(2, abs=0.05 * 2)
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.05)
