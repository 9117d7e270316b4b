"""`edlm benchmark draws`: what the dtype of the draws does to the tokens of the published sampler.

The published sampler compares q_v / e_v over the vocabulary and the mask, with q the probabilities
of one step and e_v = -log u_v for a uniform u_v. A float32 uniform is a multiple of 2^-24, so that
no e_v lies between 0 and 2^-24. A step from t = n/T multiplies the probability of every token by
1/T and that of the mask by (n - 1)/T. A token of the probability p wins at e_v < p x, where x is
exponential with a mean of about 1/n, and rarely does once p x is smaller than 2^-24. The more steps,
the more tokens are that rare in each of them (Zheng et al., arXiv 2409.02908).

Here every position has the same Zipf distribution, whatever is visible. So nothing but the dtype
can change what is drawn, T included, and the distribution itself is the perfect judge.
"""

import math

import numpy as np
import torch

from edlm_hf.benchmarks.draws_settings import DrawSettings
from edlm_hf.benchmarks.published import reverse_step
from edlm_hf.benchmarks.tables import rounded, table, text
from edlm_hf.evaluation import unigram_entropy
from edlm_hf.evaluation.estimate import LARGEST_EXPONENT, mean_estimate

# Random bits of torch.rand
BITS = {"float32": 24, "float64": 53}
# The samples whose unigram entropy is measured, and the tokens of each
SAMPLES, LENGTH = 64, 1024


def measure_draws(settings: DrawSettings) -> list[dict]:
    """One row for each T and dtype."""
    p = zipf(settings.vocab_size - 1, settings.exponent)
    rows = []
    for num_steps in settings.steps:
        for dtype, bits in BITS.items():
            # What the steps write in the limit of many positions, computed and not drawn
            drawn = drawn_distribution(p, num_steps, bits)
            row = {
                "steps": num_steps,
                "dtype": dtype,
                **summary(drawn, p, settings.seed),
            }

            # The sampler itself as a check of the computation
            if settings.positions:
                tokens = draw(p, settings.positions, num_steps, dtype, settings.seed)
                row["drawn"] = mean_nats(tokens, p)
            rows.append(row)
    return rows


def zipf(num_tokens: int, exponent: float) -> np.ndarray:
    """Probabilities (V,) in proportion to rank^-exponent."""
    ranks = np.arange(1, num_tokens + 1, dtype=np.float64)
    weights = ranks**-exponent
    return weights / weights.sum()


def reveal_rates(p: np.ndarray, n: int, bits: int) -> np.ndarray:
    """Chance of every token to be revealed in the step that starts at t = n/T: (V,).

    Without rounding it is p / n. With e_v a multiple of 2^-bits, and the smallest of its rivals
    exponential, it is (1 - r) / (exp(a) - r), r = exp(-2^-bits), a = 2^-bits (n - p) / p. The rivals
    are not rounded: the mask is nearly always the nearest of them, unless n is small, where no
    rounding matters.
    """
    unit = 2.0**-bits
    a = unit * (n - p) / p
    a = np.minimum(a, LARGEST_EXPONENT)

    # expm1 on both sides of the quotient: 1 - r is about 2^-bits, too small for a difference
    r_minus_one = np.expm1(-unit)
    return -r_minus_one / (np.expm1(a) - r_minus_one)


def drawn_distribution(p: np.ndarray, num_steps: int, bits: int) -> np.ndarray:
    """Distribution (V,) of the token that T steps write, where every step proposes p."""
    # `masked` is the chance that a position is still a mask at t = n/T
    masked = 1.0
    drawn = np.zeros_like(p)
    for n in range(num_steps, 0, -1):
        rates = reveal_rates(p, n, bits)
        drawn += masked * rates
        masked *= max(0.0, 1.0 - rates.sum())

    # Rounding can leave a mask at t = 0: the distribution is over positions that have a token
    return drawn / drawn.sum()


def summary(drawn: np.ndarray, p: np.ndarray, seed: int) -> dict:
    """Entropy, generative perplexity under p, and the unigram entropy of samples of 1,024 tokens."""
    # H(drawn), with 0 log 0 = 0, and the cross-entropy of a judge that knows p exactly
    possible = drawn[drawn > 0]
    entropy = -(possible * np.log(possible)).sum()
    nats = -(drawn * np.log(p)).sum()

    # Samples as a quality study would see them: (64, 1024)
    generator = np.random.default_rng(seed)
    ids = generator.choice(len(p), size=(SAMPLES, LENGTH), p=drawn)
    return {
        "entropy": float(entropy),
        "nats": float(nats),
        "generative_perplexity": math.exp(nats),
        "unigram_entropy": unigram_entropy(ids.tolist()).to_dict(),
    }


def draw(p: np.ndarray, num_positions: int, num_steps: int, dtype: str, seed: int) -> torch.LongTensor:
    """Tokens (N,) by the steps of the published sampler. Only what is still masked is drawn."""
    mask = len(p)
    # (1, 1, V + 1), the mask last
    p_x0 = torch.tensor([*p, 0.0], dtype=getattr(torch, dtype)).view(1, 1, -1)
    generator = torch.Generator().manual_seed(seed)

    x = torch.full((num_positions,), mask)
    for n in range(num_steps, 0, -1):
        # (M,), the positions that are still masks
        masked = (x == mask).nonzero().squeeze(-1)
        if not len(masked):
            break

        # x_s ~ q(x_s | x_t) from t = n/T to s = (n - 1)/T: (1, M)
        t = n / num_steps
        s = (n - 1) / num_steps
        here = p_x0.expand(1, len(masked), -1)
        x_s = reverse_step(here, x[masked].unsqueeze(0), t, s, mask, generator)
        x[masked] = x_s.squeeze(0)
    return x


def mean_nats(tokens: torch.LongTensor, p: np.ndarray) -> dict:
    """Mean of -log p(token), with its standard error over tokens."""
    nats = -np.log(p[tokens.numpy()])
    return mean_estimate(nats.tolist(), "nats/token").to_dict()


def markdown(rows: list[dict], settings: DrawSettings) -> str:
    """A table with a line for each T and dtype, under what was computed."""
    p = zipf(settings.vocab_size - 1, settings.exponent)
    entropy = -(p * np.log(p)).sum()
    about = (
        f"Zipf distribution of exponent {settings.exponent} over {settings.vocab_size - 1:,} tokens: "
        f"entropy {entropy:.3f} nats, perplexity {math.exp(entropy):.4g}. "
        f"Unigram entropy: mean of {SAMPLES} samples of {LENGTH:,} tokens, ± one standard error."
    )

    # Gen-PPL falls below the perplexity of p where rounding loses rare tokens
    columns = {
        "T": text("steps"),
        "draws": text("dtype"),
        "entropy (nats)": lambda row: f"{row['entropy']:.3f}",
        "Gen-PPL, perfect judge": lambda row: f"{row['generative_perplexity']:.4g}",
        "unigram entropy (bits)": lambda row: rounded(row["unigram_entropy"]),
    }

    # Two columns that must agree: the computation, and tokens drawn by the sampler
    if settings.positions:
        about += f" Drawn: mean -log p of {settings.positions} tokens; without rounding it is the entropy of p."
        columns["nats, computed"] = lambda row: f"{row['nats']:.3f}"
        columns["nats, drawn"] = lambda row: rounded(row["drawn"])
    return f"{about}\n\n{table(columns, rows)}\n"


__all__ = ["DrawSettings", "draw", "drawn_distribution", "markdown", "measure_draws", "reveal_rates", "zipf"]
