"""Nats per token from one value per noise sample, and the loop that computes these batch by batch."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from edlm_hf.evaluation.estimate import Estimate, ratio_estimate
from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.modeling.evaluation_mode import evaluating


@dataclass(frozen=True)
class LikelihoodEstimate(Estimate):
    """Nats per token over n texts; `num_samples` noise samples in all, `standard_error` that of the noise alone.

    Args:
        sequence_nats: nats of every text, averaged over its noise samples. sequence_tokens: its tokens that count.
    """

    sequence_nats: tuple[float, ...] = field(repr=False)
    sequence_tokens: tuple[int, ...] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        return sum(self.sequence_tokens)

    @property
    def text_standard_error(self) -> float:
        """Standard error as an estimate for the population that the texts are drawn from; noise included."""
        return ratio_estimate(self.sequence_nats, self.sequence_tokens, self.unit).standard_error

    @property
    def perplexity(self) -> Estimate:
        """exp of the nats per token, its error to first order."""
        value = math.exp(min(self.value, 700.0))
        return Estimate(value, value * self.standard_error, self.num_samples, "perplexity")

    def bits_per(self, unit: str, count: float | None = None) -> Estimate:
        """Bits per `unit` ("character", "byte", ...) of which the texts have `count` in all (one per token if None)."""
        scale = self.num_tokens / (count or self.num_tokens) / math.log(2)
        return Estimate(self.value * scale, self.standard_error * scale, self.num_samples, f"bits/{unit}")

    def to_dict(self) -> dict:
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "text_standard_error": self.text_standard_error,
            "num_samples": self.num_samples,
            "num_texts": len(self.sequence_nats),
            "num_tokens": self.num_tokens,
            "unit": self.unit,
        }


def scoring(model: nn.Module, noising: Noising, batches: Iterable[Noised], progress_bar: bool) -> Iterable[Noised]:
    """The batches, one by one, with the model in eval mode and without gradients."""
    shown = progress_bar and noising.place[0] == 0
    progress = {"console": Console(stderr=True), "total": len(noising), "disable": not shown}
    with evaluating(model), torch.no_grad():
        yield from track(batches, "scoring", **progress)


def estimate(
    model: nn.Module,
    noising: Noising,
    batches: Iterable[Noised],
    nats: Callable[[Noised], torch.Tensor],
    progress_bar: bool,
    exact: bool = False,
) -> LikelihoodEstimate:
    """Nats per token from one value per noise sample.

    With y_{i,2j}, y_{i,2j+1} independent in stratum j of K = M / 2, the mean over samples of text i has the variance
    (1 / K^2) sum_j (y_{i,2j} - y_{i,2j+1})^2 / 4, without bias.
    """
    values = [where_masked(nats, noised) for noised in scoring(model, noising, batches, progress_bar)]
    samples = torch.cat(noising.gather(values)).view(-1, noising.num_samples)
    check_finite(samples)
    counts = noising.texts.counts
    means, strata = samples.mean(-1), noising.num_samples // 2
    value = float(means.sum() / counts.sum())
    if exact:
        error = 0.0
    elif strata:
        pairs = samples.view(-1, strata, 2)
        variance = (pairs[..., 0] - pairs[..., 1]).square().sum() / 4 / strata**2
        error = float(variance.sqrt() / counts.sum())
    else:
        error = ratio_estimate(means, counts, "").standard_error
    sequences = tuple(means.tolist()), tuple(int(x) for x in counts)
    return LikelihoodEstimate(value, error, samples.numel(), "nats/token", *sequences)


def where_masked(nats: Callable[[Noised], torch.Tensor], noised: Noised) -> torch.Tensor:
    """The values of a batch, (B,) float64; rows without masks are 0 and need no network."""
    active = noised.masked.any(-1).cpu()
    values = torch.zeros(len(active), dtype=torch.float64, device="cpu")
    if active.any():
        values[active] = nats(noised if active.all() else noised.select(active))
    return values


def check_finite(samples: torch.Tensor) -> None:
    """Raise ValueError unless all samples (n, M) are finite."""
    bad = (~samples.isfinite()).any(-1).nonzero()
    if len(bad):
        raise ValueError(
            f"Text {int(bad[0])} has probability zero or NaN ({len(bad)} of {len(samples)} texts have). Check it and "
            "the model: half precision overflows, top_k and top_p forbid tokens, an energy of +inf rejects a text."
        )


def total(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Sum of values (B, L) at positions (B, L) bool, in float64 on the CPU: (B,)."""
    return torch.where(positions, values, 0).cpu().double().sum(-1)
