"""Upper bounds on the negative log-likelihood of texts: of the denoiser, and of the sampler that is really run.

All are in nats per token, with the Monte-Carlo standard error of the noise that was drawn. The texts
are taken as given (`text_standard_error` has the spread between them).

Notation: x_0 the text, x_t with the masks M, S in M the reveal set of a step, t_n = n / T, r_n the
probability that step n reveals a mask, E the energy (low = likely).
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import LikelihoodEstimate, likelihood_estimate
from edlm_hf.evaluation.step_costs import path_cost, step_cost
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.modeling.generation_config_edlm import given_whole_number
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.own_sampler import OwnFunction
from edlm_hf.modeling.reverse_chain import ReverseProcess
from edlm_hf.modeling.sampler_choice import PARAMETERS
from edlm_hf.modeling.samplers import MASKS, TOKENS, FirstHitting

# Options of generate() with which tokens are sampled from the denoiser's own distribution
PLAIN_SAMPLING = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "guidance_scale": None,
    "do_sample": True,
    "block_length": None,
    "corrector_sweeps": 0.0,
}
# The denoiser alone, whatever sampler the model is set to
DENOISER_ALONE = PLAIN_SAMPLING | {"sampler": "ancestral", "num_candidates": 1}
ENERGY_OPTIONS = {"energy_window", "energy_temperature", "energy_scope", "energy_chunk_size"}
BOUND_OPTIONS = ENERGY_OPTIONS | set(PLAIN_SAMPLING) | {"sampler"} | PARAMETERS

# For samplers without a likelihood: the one with a likelihood that comes nearest
NEAREST = {"low_confidence": "top_k", "edit": "threshold"}


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

    MDLM (arXiv 2406.07524), equation 10, the same for every schedule. It bounds the negative
    log-likelihood of sampling one token at a time. The integral over t is estimated as a sum over
    the number of masks, which has a finite variance (docs/mathematics.md, section 2).

    Args:
        model: one of ours, or any masked language model in `EDLMForMaskedDiffusion.from_components`.
        input_ids: complete texts, (n, L) or n lists.
        attention_mask: (n, L), 0 at padding.
        scored: (n, L) bool, the tokens that count. The others stay visible as context. Unless given,
            all count but padding and the start, end and padding tokens of the model's configuration.
        text_numbers: n integers, where the texts are a part of a larger set: their indices in it. The
            noise of a text is a function of its number.
        num_samples: noise samples per text, even or 1. With 1 the standard error is over texts.
        importance_sampling: draw times with a density proportional to the weight of the bound.
        batch_size: changes the speed only: the noise is a function of seed, text and sample.
        distributed: share the batches with the other processes of `torchrun`. All get the same result.

    Raises:
        ValueError: there are no texts, a text is empty, too long or not complete, or a
            log-probability is not finite.
    """
    # With one candidate no energy acts
    process = reverse_process(model, DENOISER_ALONE)
    texts = read_texts(model.config, input_ids, attention_mask, scored, text_numbers)
    noising = Noising(texts, process.schedule, num_samples, batch_size, seed, distributed)

    def nats(noised: Noised) -> torch.Tensor:
        # (B,) weight of the step times E_S sum_{i in S} -log p_theta^i
        cost = step_cost(process, noised, inner_copies=1)
        return noised.weight * cost

    # The steps of a sampler that reveals one token at a time
    sampler = FirstHitting(importance=importance_sampling)
    batches = noising.random_steps(sampler, device_of(model))
    return likelihood_estimate(model, noising, batches, nats, progress_bar)


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

    For log-linear noise this is (L / T) sum_n h(n / T), h the cross-entropy per masked token.

    The arguments that are not listed are those of `nelbo`.

    Args:
        num_steps: T.

    Raises:
        ValueError: as `nelbo`, or num_steps < 1.
    """
    # The ancestral sampler reveals every mask with the probability r_n of its step
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
        **PLAIN_SAMPLING,
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

    1. A sampler that sees masks alone is bounded by one random step of a path, with the number of
       steps as its weight.
    2. A planner that looks at the proposal walks the whole path. For a deterministic one without an
       energy this is not a bound but the exact likelihood, with standard error 0.
    3. A step of Algorithm 1 with k candidates is bounded by Jensen's inequality (see
       `edlm_hf.evaluation.step_costs`): no log Z, no asymptotics. m copies tighten it like 1 / m.

    With `energy_scope="sequence"` and few steps m = 1 is loose even for a perfect energy, and a bound
    above `discrete_nelbo` says nothing against the sampler: report m = 1, 16 and 64.

    The arguments that are not listed are those of `nelbo`.

    Args:
        num_steps: T, the default of generation unless given.
        num_candidates: k, the default of generation unless given.
        inner_copies: m.
        energy: a callable in place of the model's own, as in `generate()`.
        whole_path: walk the whole path of samplers that see masks alone, too.
        generation_options: other options of `generate()` that count: sampler and its parameters,
            block_length, energy_window, energy_temperature, energy_scope, energy_chunk_size,
            temperature, top_k, top_p, min_p, guidance_scale (a text that these forbid has no finite
            bound).

    Raises:
        ValueError: as `nelbo` and `generate()`, inner_copies < 1, do_sample=False, or a sampler that
            looks at the tokens it draws, of which no likelihood is known.
    """
    inner_copies = given_whole_number("inner_copies", inner_copies, 1)
    check_options(generation_options)
    options = generation_options | {
        "max_denoising_steps": num_steps,
        "num_candidates": num_candidates,
    }
    process = reverse_process(model, options, energy)
    texts = read_texts(model.config, input_ids, attention_mask, scored, text_numbers)
    noising = Noising(texts, process.schedule, num_samples, batch_size, seed, distributed)
    check_has_likelihood(process)

    # One random step of a path, or all of them
    walks_path = whole_path or not has_independent_steps(process)

    # Where nothing is drawn a text has a single path, so that one sample has no noise
    exact = walks_path and process.sampler.is_deterministic and process.energy is None
    if exact:
        noising.num_samples = 1

    def nats(noised: Noised) -> torch.Tensor:
        if walks_path:
            return path_cost(process, noised, inner_copies)

        # The number of steps times the cost of a random one, (B,)
        cost = step_cost(process, noised, inner_copies)
        return noised.weight * cost

    # A path begins with a mask on every token
    device = device_of(model)
    if walks_path:
        batches = noising.all_masked(device)
    else:
        batches = noising.random_steps(process.sampler, device)
    return likelihood_estimate(model, noising, batches, nats, progress_bar, exact=exact)


def reverse_process(model: nn.Module, options: dict, energy: Callable | None = None) -> ReverseProcess:
    """The process that `generate()` would sample with these options.

    Raises:
        ValueError: the model is not a denoiser, or an option is not allowed.
    """
    if not hasattr(model, "reverse_process"):
        raise ValueError(
            f"model is a {type(model).__name__}, which does not denoise. Wrap a masked language model in "
            "EDLMForMaskedDiffusion.from_components; for a causal one there is autoregressive_nll."
        )
    return model.reverse_process(energy=energy, **options)


def has_independent_steps(process: ReverseProcess) -> bool:
    """Whether one random step of a path can be drawn without the tokens of the steps before it."""
    sampler = process.sampler
    one_block = process.config.block_length is None

    # A function gives its set only when it is called
    if isinstance(sampler, OwnFunction):
        return False
    return one_block and sampler.sees == MASKS and not sampler.is_deterministic


def check_options(generation_options: dict) -> None:
    """Raise ValueError if an option has no part in a likelihood."""
    if unknown := sorted(set(generation_options) - BOUND_OPTIONS):
        raise ValueError(
            f"There is no use for {', '.join(unknown)} here. Besides the named arguments, the options of generate() "
            f"that count are {', '.join(sorted(BOUND_OPTIONS))}."
        )


def check_has_likelihood(process: ReverseProcess) -> None:
    """Raise ValueError unless tokens are drawn, and reveal sets do not depend on the tokens of their step."""
    if process.config.do_sample is False:
        raise ValueError("do_sample is False, but a text that is not drawn has no likelihood. Pass do_sample=True.")

    if process.target is not None:
        raise ValueError(
            "sampler='speculative' draws from the autoregressive energy model itself, so its likelihood is that of "
            "this model and needs no bound: call autoregressive_nll."
        )

    if process.sampler.sees == TOKENS:
        # A sampler given as an object has no name to look up
        name = process.config.sampler
        nearest = NEAREST.get(name, "top_k") if isinstance(name, str) else "top_k"
        raise ValueError(
            f"The sampler {name!r} picks positions by the tokens that it has drawn, which makes likely tokens likelier "
            f"than the model does: no likelihood is known. The nearest sampler with one is {nearest!r}."
        )
