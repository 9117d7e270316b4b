"""Likelihood of texts: bounds of the denoiser and of the sampler that is really run, and what papers report instead.

All in nats per token, with the Monte-Carlo standard error of the noise that was drawn; the texts are taken as given
(`text_standard_error` has the spread between them). Notation: x_0 the text, x_t with the masks M, S in M the reveal set
of a step, t_n = n / T, r_n the chance that a step reveals a mask, E the energy, low = likely.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from edlm_hf.evaluation.estimate import Estimate, ratio_estimate
from edlm_hf.evaluation.noising import Noised, Noising, read_texts, reveal_chance
from edlm_hf.evaluation.terms import joint_nats, log_gain, proposal, total
from edlm_hf.modeling.denoising_edlm import Run
from edlm_hf.modeling.energy_edlm import autoregressive_log_probs
from edlm_hf.modeling.evaluation_mode import evaluating
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.network_probes import is_causal


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


# ------------------------------------------------------------------------------------------------------------- bounds


def nelbo(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    scored=None,
    text_numbers: Sequence[int] | None = None,
    num_samples: int = 8,
    importance_sampling: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
) -> LikelihoodEstimate:
    """L_inf, the continuous-time bound of the denoiser: E int_0^1 (1/t) sum_{i in M} -log p_theta^i(x_0^i | x_t) dt.

    MDLM (arXiv 2406.07524), equation 10; the same for every schedule. It bounds the negative log-likelihood of sampling
    one token at a time. Estimated by the number of masks, not by t (see `Noising.continuous`).

    Args:
        model: one of ours, or any masked language model in `EDLMForMaskedDiffusion.from_components`.
        input_ids: complete texts, (n, L) or n lists; attention_mask: (n, L), 0 at padding.
        scored: (n, L) bool, the tokens that count; the others stay visible as context. Unless given, all but padding
            and the start, end and padding tokens of the model's configuration.
        text_numbers: where the texts are a part of others: their n numbers among these, by which noise is drawn.
        num_samples: noise samples per text, even or 1; with 1 the standard error is that over texts.
        importance_sampling: draw times with a density proportional to the weight of the bound.
        batch_size: changes the speed only: the noise is a function of seed, text and sample.
        distributed: share the batches with the other processes of `torchrun`; all get the same result.

    Raises:
        ValueError: no texts, a text that is empty, too long or not complete, or a log-probability that is not finite.
    """
    options = NO_FILTERS | {"text_numbers": text_numbers}
    run, noising = prepare(
        model, input_ids, attention_mask, scored, num_samples, batch_size, seed, None, distributed, **options
    )

    def nats(noised: Noised) -> torch.Tensor:
        return noised.weight * total(proposal(model, run, noised).nats, noised.masked)

    return estimate(model, noising, noising.continuous(importance_sampling, run.device), nats, progress_bar)


def discrete_nelbo(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    num_steps: int,
    scored=None,
    text_numbers: Sequence[int] | None = None,
    num_samples: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
) -> LikelihoodEstimate:
    """L_T = sum_n r_n E sum_{i in M} -log p_theta^i(x_0^i | x_{t_n}), the bound of the T-step sampler without energy.

    For log-linear noise (L / T) sum_n h(n / T), h the cross-entropy per masked token. Arguments as in `nelbo`.

    Args:
        num_steps: T.

    Raises:
        ValueError: as `nelbo`; num_steps < 1.
    """
    options = {"num_steps": num_steps, "num_candidates": 1, "num_samples": num_samples, "batch_size": batch_size}
    options |= {"seed": seed, "distributed": distributed, "progress_bar": progress_bar} | NO_FILTERS
    options |= {"do_sample": True, "block_length": None}  # whatever the model's samples are drawn with
    return sampler_bound(model, input_ids, attention_mask, scored=scored, text_numbers=text_numbers, **options)


def sampler_bound(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    num_steps: int,
    num_candidates: int | None = None,
    inner_copies: int = 1,
    energy: Callable | None = None,
    scored=None,
    text_numbers: Sequence[int] | None = None,
    num_samples: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
    **generation_options,
) -> LikelihoodEstimate:
    """An upper bound on the negative log-likelihood of the sampler that `generate()` runs, for every k, T and window.

    A step of Algorithm 1 that reveals S has the law p_k(x_S | x_t), and by Jensen's inequality

        -log p_k(x_0^S | x_t) <= -log p_theta(x_0^S | x_t) - E log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ],

    where candidate 1 carries x_0^S (the rest of M from p_theta) and candidates 2..k come from p_theta. Summed over
    steps it bounds the sampler; no log Z, no asymptotics. m copies tighten it like 1 / m. An empty S costs exactly 0.
    The first term is averaged over S: r_n sum_{i in M}.

    With `energy_scope="sequence"` and few steps m = 1 is loose even for a perfect energy, and a bound above
    `discrete_nelbo` says nothing against the sampler: report m = 1, 16 and 64. Other arguments as in `nelbo`.

    Args:
        num_steps: T. num_candidates: k, the generation default unless given. inner_copies: m.
        energy: a callable in place of the model's own, as in `generate()`.
        generation_options: what else `generate()` runs with: energy_window, energy_temperature, energy_scope,
            energy_chunk_size, temperature, top_k, top_p (a text that these forbid has no finite bound).

    Raises:
        ValueError: as `nelbo` and `generate()`; inner_copies < 1; a sampler other than `ancestral`.
    """
    if inner_copies < 1:
        raise ValueError(f"inner_copies is {inner_copies}, but it must be at least 1.")
    check_options(generation_options)
    options = {"sampler": "ancestral"} | generation_options
    options |= {"max_denoising_steps": num_steps, "num_candidates": num_candidates, "text_numbers": text_numbers}
    run, noising = prepare(
        model, input_ids, attention_mask, scored, num_samples, batch_size, seed, energy, distributed, **options
    )
    if run.config.sampler != "ancestral" or run.config.do_sample is False or run.config.block_length is not None:
        raise ValueError("The bound is that of the sampler `ancestral` with do_sample=True, without block_length.")

    def nats(noised: Noised) -> torch.Tensor:
        proposed = proposal(model, run, noised)
        value = reveal_chance(run.schedule, noised.t, num_steps) * total(proposed.nats, noised.masked)
        weighed = noised.revealed.any(-1).cpu() & run.weighs(noised.t)
        if weighed.any():
            value[weighed] -= log_gain(model, run, noised, proposed, weighed, inner_copies)
        return noised.weight * value

    return estimate(model, noising, noising.steps(num_steps, run.device), nats, progress_bar)


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
    """The estimator behind the paper's tables: E int_0^1 (1/t) [-log p_theta(x_0|x_t) + E(x_0, x_t) + log Z(x_t)] dt.

    WARNING: *not* an upper bound on the negative log-likelihood. It integrates the joint over all of M where a sampler
    reveals a part of it, and can fall below the entropy of the data (two equal fair bits: entropy 1 bit, estimator
    1/2); for EDLM-coAR it is the AR model's likelihood whatever the denoiser. Use `sampler_bound` for claims. Without
    masks the bracket is exactly 0 (the published code adds the AR energy of the visible text there, which diverges).

    Args:
        log_partition: `one` takes Z = 1, as the published validation code does (exact for coAR); `lower` and `upper`
            are the estimates of `log_partition_bounds` from `partition_samples` proposals.
        Others as in `sampler_bound` and `nelbo`.

    Raises:
        ValueError: as `nelbo`; an unknown `log_partition`; an energy of scope `revealed`.
    """
    if log_partition not in ("one", "lower", "upper"):
        raise ValueError(f"log_partition is {log_partition!r}, but it must be one of one, lower, upper.")
    if partition_samples < 2:
        raise ValueError(f"partition_samples is {partition_samples}, but it must be at least 2.")
    check_options(generation_options)
    options = NO_FILTERS | generation_options | {"num_candidates": 2}  # none is drawn, but 1 stands for no energy
    run, noising = prepare(
        model, input_ids, attention_mask, scored, num_samples, batch_size, seed, energy, distributed, **options
    )
    if run.config.energy_scope == "revealed":
        raise ValueError("The paper's estimator takes the joint over all masks: it needs energy_scope='sequence'.")

    def nats(noised: Noised) -> torch.Tensor:
        return noised.weight * joint_nats(model, run, noised, log_partition, partition_samples)

    return estimate(model, noising, noising.continuous(False, run.device), nats, progress_bar)


@torch.no_grad()
def autoregressive_nll(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    scored=None,
    batch_size: int = 16,
    distributed: bool = False,
    progress_bar: bool = False,
) -> LikelihoodEstimate:
    """-log p_AR(x) per token of a causal language model: exact, so its Monte-Carlo standard error is 0.

    The model's `bos_token_id` goes in front of a text that does not start with it; without one (or with one outside its
    vocabulary) the first token is context and does not count. Of an EDLM-AR or coAR composite it is the energy's causal
    model, normalised over what the denoiser can emit. Arguments as in `nelbo`.

    Raises:
        ValueError: as `nelbo`; the model is not causal; a text of one token without a start token.
    """
    energy_type = getattr(model.config, "energy_type", None)
    if energy_type in ("none", "nce") or energy_type is None and not is_causal(model):
        raise ValueError(
            f"model is a {type(model).__name__}, which predicts a token from later ones too: its autoregressive "
            "likelihood does not exist. For a denoiser there are nelbo, discrete_nelbo and sampler_bound."
        )
    texts = read_texts(model.config, input_ids, attention_mask, scored)
    causal, rows, mask = model, model.config.vocab_size, getattr(model.config, "mask_token_id", None)
    if energy_type is not None:
        causal = model.energy_model
        rows = rows or model(input_ids=texts.ids[0].unsqueeze(0).to(device_of(model))).logits.shape[-1]
    start = causal.config.bos_token_id
    if start is not None and not 0 <= start < causal.config.vocab_size:
        start = None
    noising = Noising(texts, None, 1, batch_size, 0, distributed)
    if start is None:
        for i, kept in enumerate(texts.scored):
            kept[0] = False
            if not kept.any():
                raise ValueError(f"Text {i} has no token to score: without a start token its first one is context.")

    def nats(noised: Noised) -> torch.Tensor:
        log_probs = autoregressive_log_probs(
            causal,
            noised.clean.unsqueeze(1),
            noised.masked,
            denoiser_vocab_size=rows,
            mask_token_id=-1 if mask is None else mask,
            absent_token_ids=getattr(model.config, "absent_token_ids", None),
            start_token_id=start,
            needs_start=None if start is None else noised.clean[:, 0] != start,
            attention_mask=noised.real,
        )
        return total(-log_probs[:, 0].double(), noised.masked)

    return estimate(model, noising, noising.everything(device_of(causal)), nats, progress_bar, exact=True)


# ---------------------------------------------------------------------------------------------- h(t), the whole profile


@dataclass(frozen=True)
class HProfile:
    """h(t), the cross-entropy per masked token at mask rate 1 - alpha_t: one estimate in nats per time."""

    times: tuple[float, ...]
    entropies: tuple[Estimate, ...]

    def plot(self, axes=None, **style):
        """Draw h against t with two standard errors on matplotlib `axes` (new ones unless given); returns them."""
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.figure(figsize=(5, 3.5), layout="constrained").subplots()
            axes.set(xlabel="t", ylabel="h(t), nats per masked token")
        values, errors = ([getattr(x, name) for x in self.entropies] for name in ("value", "standard_error"))
        axes.errorbar(self.times, values, yerr=[2 * x for x in errors], **({"capsize": 2} | style))
        return axes


def h_profile(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    times: Iterable[float] = tuple((i + 1) / 20 for i in range(20)),
    scored=None,
    num_samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
) -> HProfile:
    """h(t) = E[sum_{i in M} -log p_theta^i(x_0^i | x_t)] / E[|M|] at each of `times`; arguments as in `nelbo`.

    L_inf / L = int_0^1 h(t) dt and L_T / L = (1 / T) sum_n h(n / T) for log-linear noise, so that the slope of h is the
    factorisation gap that an energy can win back.

    Raises:
        ValueError: as `nelbo`; a time outside (0, 1].
    """
    times = tuple(float(t) for t in times)
    if not times or not all(0 < t <= 1 for t in times):
        raise ValueError(f"times is {times}, but at least one is needed, all in (0, 1].")
    run, noising = prepare(
        model, input_ids, attention_mask, scored, num_samples, batch_size, seed, None, distributed, **NO_FILTERS
    )
    entropies = []

    def nats(noised: Noised) -> torch.Tensor:
        return total(proposal(model, run, noised).nats, noised.masked)

    for t in times:
        sums, counts = [], []
        for noised in scoring(model, noising, noising.at(t, run.device), progress_bar):
            sums.append(where_masked(nats, noised))
            counts.append(noised.masked.sum(-1).cpu())
        sums, counts = (torch.cat(noising.gather(parts)) for parts in (sums, counts))
        check_finite(sums.view(-1, noising.num_samples))
        entropies.append(ratio_estimate(sums, counts, "nats/masked token"))
    return HProfile(times, tuple(entropies))


# -------------------------------------------------------------------------------------------------------- estimation

NO_FILTERS = {"temperature": 1.0, "top_k": None, "top_p": None}
BOUND_OPTIONS = {"energy_window", "energy_temperature", "energy_scope", "energy_chunk_size", *NO_FILTERS}
BOUND_OPTIONS |= {"sampler", "do_sample", "block_length"}


def check_options(generation_options: dict) -> None:
    if unknown := sorted(set(generation_options) - BOUND_OPTIONS):
        raise ValueError(
            f"There is no use for {', '.join(unknown)} here. Besides the named arguments, the options of generate() "
            f"that count are {', '.join(sorted(BOUND_OPTIONS))}."
        )


def prepare(
    model: nn.Module,
    input_ids,
    attention_mask,
    scored,
    num_samples,
    batch_size,
    seed,
    energy=None,
    distributed=False,
    text_numbers=None,
    **generation_options,
) -> tuple[Run, Noising]:
    """The sampler that is bounded, and the noise."""
    if not hasattr(model, "prepare_run"):
        raise ValueError(
            f"model is a {type(model).__name__}, which does not denoise. Wrap a masked language model in "
            "EDLMForMaskedDiffusion.from_components; for a causal one there is autoregressive_nll."
        )
    config = model._prepare_generation_config(None, **generation_options)
    run = model.prepare_run(config, torch.empty(0, 0, dtype=torch.long, device=device_of(model)), energy)
    texts = read_texts(model.config, input_ids, attention_mask, scored, text_numbers)
    return run, Noising(texts, run.schedule, num_samples, batch_size, seed, distributed)


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
