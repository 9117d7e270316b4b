"""Bounds on the likelihood of texts: that of the denoiser, and that of the sampler which is really run.

All in nats per token, with the Monte-Carlo standard error of the noise that was drawn; the texts are taken as given
(`text_standard_error` has the spread between them). Notation: x_0 the text, x_t with the masks M, S in M the reveal set
of a step, t_n = n / T, r_n the chance that a step reveals a mask, E the energy, low = likely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import LikelihoodEstimate, estimate
from edlm_hf.evaluation.step_costs import step_cost, walk
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.reverse_chain import ReverseProcess
from edlm_hf.modeling.sampler_choice import PARAMETERS
from edlm_hf.modeling.samplers import MASKS, TOKENS, FirstHitting


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
    one token at a time. Estimated by the number of masks, not by t (see `FirstHitting.jump`).

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
    task = Task(input_ids, attention_mask, scored, text_numbers, num_samples, batch_size, seed, distributed)
    process, noising = prepare(model, task, NO_FILTERS | {"num_candidates": 1})
    sampler = FirstHitting(importance=importance_sampling)

    def nats(noised: Noised) -> torch.Tensor:
        return noised.weight * step_cost(process, noised, 1)

    return estimate(model, noising, noising.jumps(sampler, device_of(model)), nats, progress_bar)


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
    return sampler_bound(
        model,
        input_ids,
        attention_mask,
        num_steps=num_steps,
        num_candidates=1,
        sampler="ancestral",
        scored=scored,
        text_numbers=text_numbers,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
        distributed=distributed,
        progress_bar=progress_bar,
        **NO_FILTERS,
    )


def sampler_bound(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    num_steps: int | None = None,
    num_candidates: int | None = None,
    inner_copies: int = 1,
    energy: Callable | None = None,
    whole_path: bool = False,
    scored=None,
    text_numbers: Sequence[int] | None = None,
    num_samples: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    distributed: bool = False,
    progress_bar: bool = False,
    **generation_options,
) -> LikelihoodEstimate:
    """An upper bound on the negative log-likelihood of the sampler that `generate()` runs, whatever its options are.

    Given x_t a sampler picks S without regard to the tokens that it reveals, so that (docs/samplers.md)

        -log p(x_0) <= E over paths of sum_n -log P(x_0^{S_n} | x_n).

    Samplers that see masks alone are bounded by one random step of a path, weighed by the number of steps. Planners
    that look at the proposal walk the whole path; for a deterministic one without an energy that is not a bound but
    the exact likelihood, with standard error 0. A step of Algorithm 1 with k candidates is bounded by Jensen's
    inequality (see `edlm_hf.evaluation.step_costs`): no log Z, no asymptotics. m copies tighten it like 1 / m.

    With `energy_scope="sequence"` and few steps m = 1 is loose even for a perfect energy, and a bound above
    `discrete_nelbo` says nothing against the sampler: report m = 1, 16 and 64. Other arguments as in `nelbo`.

    Args:
        num_steps: T. num_candidates: k. The generation defaults unless given. inner_copies: m.
        energy: a callable in place of the model's own, as in `generate()`.
        whole_path: walk the whole path of samplers that see masks alone, too.
        generation_options: what else `generate()` runs with: sampler and its parameters, block_length, energy_window,
            energy_temperature, energy_scope, energy_chunk_size, temperature, top_k, top_p, min_p, guidance_scale (a
            text that these forbid has no finite bound).

    Raises:
        ValueError: as `nelbo` and `generate()`; inner_copies < 1; do_sample=False; a sampler that looks at the tokens
            it draws, of which no likelihood is known.
    """
    if inner_copies < 1:
        raise ValueError(f"inner_copies is {inner_copies}, but it must be at least 1.")
    check_options(generation_options)
    options = generation_options | {"max_denoising_steps": num_steps, "num_candidates": num_candidates}
    task = Task(input_ids, attention_mask, scored, text_numbers, num_samples, batch_size, seed, distributed)
    process, noising = prepare(model, task, options, energy)
    check_has_likelihood(process)
    sampler = process.sampler
    one_step = sampler.sees == MASKS and not sampler.is_deterministic and process.config.block_length is None
    walks = whole_path or not one_step

    # A single path, where nothing is drawn
    exact = walks and sampler.is_deterministic and process.energy is None
    if exact:
        noising.num_samples = 1

    def nats(noised: Noised) -> torch.Tensor:
        if walks:
            return walk(process, noised, inner_copies)
        return noised.weight * step_cost(process, noised, inner_copies)

    device = device_of(model)
    batches = noising.everything(device) if walks else noising.jumps(sampler, device)
    return estimate(model, noising, batches, nats, progress_bar, exact=exact)


# The samplers that come nearest to one without a likelihood, and have one
NEAREST = {"low_confidence": "top_k", "edit": "threshold"}


def check_has_likelihood(process: ReverseProcess) -> None:
    """Raise ValueError unless the reveal sets of a sampler are drawn, and without regard to the tokens of a step."""
    if process.config.do_sample is False:
        raise ValueError("do_sample is False, but a text that is not drawn has no likelihood. Pass do_sample=True.")
    if process.sampler.sees == TOKENS:
        name = process.config.sampler
        nearest = NEAREST.get(name, "top_k") if isinstance(name, str) else "top_k"
        raise ValueError(
            f"The sampler {name!r} picks positions by the tokens that it has drawn, which makes likely tokens likelier "
            f"than the model does: no likelihood is known. The nearest sampler with one is {nearest!r}."
        )


NO_FILTERS = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "guidance_scale": None}
NO_FILTERS |= {"do_sample": True, "block_length": None, "corrector_sweeps": 0.0}
BOUND_OPTIONS = {"energy_window", "energy_temperature", "energy_scope", "energy_chunk_size", "sampler"}
BOUND_OPTIONS |= set(NO_FILTERS) | PARAMETERS


def check_options(generation_options: dict) -> None:
    """Raise ValueError unless all options are of those that count for a likelihood."""
    if unknown := sorted(set(generation_options) - BOUND_OPTIONS):
        raise ValueError(
            f"There is no use for {', '.join(unknown)} here. Besides the named arguments, the options of generate() "
            f"that count are {', '.join(sorted(BOUND_OPTIONS))}."
        )


@dataclass(frozen=True)
class Task:
    """The texts to score and the noise to score them with; arguments as in `nelbo`."""

    input_ids: object
    attention_mask: torch.Tensor | None = None
    scored: torch.Tensor | None = None
    text_numbers: Sequence[int] | None = None
    num_samples: int = 8
    batch_size: int = 16
    seed: int = 0
    distributed: bool = False


def prepare(
    model: nn.Module, task: Task, options: dict, energy: Callable | None = None
) -> tuple[ReverseProcess, Noising]:
    """What is sampled with the `options` of generate(), and the noise."""
    if not hasattr(model, "reverse_process"):
        raise ValueError(
            f"model is a {type(model).__name__}, which does not denoise. Wrap a masked language model in "
            "EDLMForMaskedDiffusion.from_components; for a causal one there is autoregressive_nll."
        )
    process = model.reverse_process(energy=energy, **options)
    texts = read_texts(model.config, task.input_ids, task.attention_mask, task.scored, task.text_numbers)
    sampling = task.num_samples, task.batch_size, task.seed, task.distributed
    return process, Noising(texts, process.schedule, *sampling)
