"""h(t), the cross-entropy per masked token at every time: its slope is the gap that an energy can close."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from edlm_hf.evaluation.estimate import Estimate, ratio_estimate
from edlm_hf.evaluation.likelihood import DENOISER_ALONE, reverse_process
from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import check_finite, in_eval_mode, nats_of_masked, sum_at
from edlm_hf.evaluation.step_costs import propose
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.modeling.network_facts import device_of


@dataclass(frozen=True)
class HProfile:
    """h(t), the cross-entropy per masked token at mask rate 1 - alpha_t: one estimate in nats per time.

    The standard errors are over texts, noise included.
    """

    times: tuple[float, ...]
    entropies: tuple[Estimate, ...]

    def plot(self, axes=None, **style):
        """Draw h against t with two standard errors on matplotlib `axes` (new ones unless given), and return them."""
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.figure(figsize=(5, 3.5), layout="constrained").subplots()
            axes.set(xlabel="t", ylabel="h(t), nats per masked token")

        # The bars reach two standard errors up and down
        values = [entropy.value for entropy in self.entropies]
        errors = [2 * entropy.standard_error for entropy in self.entropies]
        style = {"capsize": 2} | style
        axes.errorbar(self.times, values, yerr=errors, **style)
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
    """h(t) = E[sum_{i in M} -log p_theta^i(x_0^i | x_t)] / E[|M|] at each of `times`.

    L_inf / L = int_0^1 h(t) dt, and for log-linear noise L_T / L = (1 / T) sum_n h(n / T). So the
    slope of h is the factorisation gap that an energy can win back.

    The arguments that are not listed are those of `nelbo`.

    Args:
        times: in (0, 1].

    Raises:
        ValueError: as `nelbo`, or a time outside (0, 1].
    """
    try:
        times = tuple(float(t) for t in times)
    except (TypeError, ValueError):
        raise ValueError(f"times is {times!r}, but several numbers in (0, 1] are needed, such as (0.5, 1.0).") from None
    if not times or not all(0 < t <= 1 for t in times):
        raise ValueError(f"times is {times}, but at least one is needed, all in (0, 1].")

    # The denoiser's own distribution, without filters
    process = reverse_process(model, DENOISER_ALONE)
    texts = read_texts(model.config, input_ids, attention_mask, scored)
    noising = Noising(texts, process.schedule, num_samples, batch_size, seed, distributed)

    # sum_{i in M} -log p_theta^i, (B,)
    def nats(noised: Noised) -> torch.Tensor:
        proposal = propose(process, noised)
        return sum_at(noised.masked, proposal.nats(noised.clean))

    entropies = []
    for t in times:
        # The same noise samples at every t, so that neighbouring times share their errors
        sums = []
        counts = []
        batches = noising.masked_at(t, device_of(model))
        for noised in in_eval_mode(model, noising, batches, progress_bar):
            sums.append(nats_of_masked(nats, noised))
            counts.append(noised.masked.sum(-1).cpu())

        # Nats and masks of every text and noise sample, (n, M): rows come text by text
        sums = torch.cat(noising.gather(sums)).view(-1, noising.num_samples)
        counts = torch.cat(noising.gather(counts)).view(-1, noising.num_samples)
        check_finite(sums)

        # A ratio of sums, not a mean of ratios: rows without masks add nothing. The samples of a
        # text are not independent, so that texts are the clusters
        entropy = ratio_estimate(sums.sum(-1), counts.sum(-1), "nats/masked token")
        entropies.append(entropy)
    return HProfile(times, tuple(entropies))
