"""Nats per token from one value per noise sample, and the loop that computes these batch by batch."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Real

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from edlm_hf.evaluation.estimate import LARGEST_EXPONENT, Estimate, ratio_estimate
from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.modeling.evaluation_mode import evaluating


@dataclass(frozen=True)
class LikelihoodEstimate(Estimate):
    """Nats per token over n texts, from `num_samples` noise samples in all.

    `standard_error` is the error of the noise alone, the texts taken as given.

    Args:
        sequence_nats: nats of every text, averaged over its noise samples.
        sequence_tokens: tokens of every text that count.
    """

    sequence_nats: tuple[float, ...] = field(repr=False)
    sequence_tokens: tuple[int, ...] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts that count."""
        return sum(self.sequence_tokens)

    @property
    def text_standard_error(self) -> float:
        """Standard error for the population that the texts are drawn from, noise included."""
        # Nats per token, with the texts as clusters
        over_texts = ratio_estimate(self.sequence_nats, self.sequence_tokens, self.unit)
        return over_texts.standard_error

    @property
    def perplexity(self) -> Estimate:
        """exp of the nats per token, with its error to first order."""
        value = math.exp(min(self.value, LARGEST_EXPONENT))
        return Estimate(value, value * self.standard_error, self.num_samples, "perplexity")

    def bits_per(self, unit: str, count: float | None = None) -> Estimate:
        """Bits per `unit` ("character", "byte", ...).

        Args:
            count: units in all texts together, one per token unless given.

        Raises:
            ValueError: `count` is not a positive number.
        """
        if count is None:
            count = self.num_tokens
        if not isinstance(count, Real) or not 0 < count < math.inf:
            raise ValueError(
                f"count is {count!r}, but it must be a positive number: the {unit}s in all texts together."
            )

        # nats/token * tokens/unit / log 2 = bits/unit
        tokens_per_unit = self.num_tokens / count
        scale = tokens_per_unit / math.log(2)
        return Estimate(
            value=self.value * scale,
            standard_error=self.standard_error * scale,
            num_samples=self.num_samples,
            unit=f"bits/{unit}",
        )

    def to_dict(self) -> dict:
        """The numbers of all texts together, without those of single texts."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "text_standard_error": self.text_standard_error,
            "num_samples": self.num_samples,
            "num_texts": len(self.sequence_nats),
            "num_tokens": self.num_tokens,
            "unit": self.unit,
        }


def likelihood_estimate(
    model: nn.Module,
    noising: Noising,
    batches: Iterable[Noised],
    nats: Callable[[Noised], torch.Tensor],
    progress_bar: bool,
    exact: bool = False,
) -> LikelihoodEstimate:
    """Nats per token from one value per noise sample.

    Args:
        nats: gives the values (B,) of a batch.
        exact: the values have no noise, so that the standard error is 0.
    """
    # One value per row of a batch, (B,) each
    values = []
    for noised in in_eval_mode(model, noising, batches, progress_bar):
        values.append(nats_of_masked(nats, noised))

    # One value per text and noise sample, (n, M): rows come text by text
    values = noising.gather(values)
    samples = torch.cat(values).view(-1, noising.num_samples)
    check_finite(samples)

    # The mean over noise samples, summed over texts, per token
    text_nats = samples.mean(-1)
    text_tokens = noising.texts.counts
    value = float(text_nats.sum() / text_tokens.sum())

    # The error of the noise; a single sample per text leaves only the spread over texts
    if exact:
        error = 0.0
    elif noising.num_samples == 1:
        error = ratio_estimate(text_nats, text_tokens, "").standard_error
    else:
        error = float(paired_error(samples) / text_tokens.sum())

    return LikelihoodEstimate(
        value=value,
        standard_error=error,
        num_samples=samples.numel(),
        unit="nats/token",
        sequence_nats=tuple(text_nats.tolist()),
        sequence_tokens=tuple(int(count) for count in text_tokens),
    )


def paired_error(samples: torch.Tensor) -> torch.Tensor:
    """Standard error of sum_i mean_m y_im for samples y (n, M) that come in pairs: a scalar.

    y_{i,2j} and y_{i,2j+1} are independent in stratum j of K = M / 2. The mean over the samples of
    text i has the variance (1 / K^2) sum_j (y_{i,2j} - y_{i,2j+1})^2 / 4, without bias.
    """
    strata = samples.shape[1] // 2
    pairs = samples.view(-1, strata, 2)  # (n, K, 2)
    differences = pairs[..., 0] - pairs[..., 1]

    # The sum over texts and strata
    variance = differences.square().sum() / 4 / strata**2
    return variance.sqrt()


def in_eval_mode(
    model: nn.Module,
    noising: Noising,
    batches: Iterable[Noised],
    progress_bar: bool,
) -> Iterable[Noised]:
    """Yield the batches with the model in eval mode and without gradients, and show the progress."""
    # Of several processes the first one alone shows it
    shown = progress_bar and noising.rank == 0
    console = Console(stderr=True)
    with evaluating(model), torch.no_grad():
        yield from track(batches, "scoring", console=console, total=len(noising), disable=not shown)


def nats_of_masked(nats: Callable[[Noised], torch.Tensor], noised: Noised) -> torch.Tensor:
    """The values of a batch, (B,) float64. Rows without masks are 0 and need no network."""
    active = noised.masked.any(-1).cpu()
    values = torch.zeros(len(active), dtype=torch.float64, device="cpu")

    # All rows are the common case, which needs no copy
    if active.any():
        chosen = noised if active.all() else noised.select(active)
        values[active] = nats(chosen)
    return values


def check_finite(samples: torch.Tensor) -> None:
    """Raise ValueError unless all samples (n, M) are finite."""
    bad = (~samples.isfinite()).any(-1).nonzero()
    if len(bad):
        raise ValueError(
            f"Text {int(bad[0])} has probability zero or NaN ({len(bad)} of {len(samples)} texts have). Check it and "
            "the model: half precision overflows, top_k and top_p forbid tokens, an energy of +inf rejects a text."
        )


def sum_at(positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` (B, L) at `positions` (B, L) bool, in float64 on the CPU: (B,)."""
    # Not a product: 0 times an infinite value outside `positions` would be NaN
    chosen = torch.where(positions, values, 0)
    return chosen.cpu().double().sum(-1)
