"""h(t), the cross-entropy per masked token at every time: the profile whose slope is what an energy can win back."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from edlm_hf.evaluation.estimate import Estimate, ratio_estimate
from edlm_hf.evaluation.likelihood import NO_FILTERS, Task, prepare
from edlm_hf.evaluation.noising import Noised
from edlm_hf.evaluation.scoring import check_finite, scoring, total, where_masked
from edlm_hf.evaluation.step_costs import propose
from edlm_hf.modeling.network_facts import device_of


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
    task = Task(input_ids, attention_mask, scored, None, num_samples, batch_size, seed, distributed)
    process, noising = prepare(model, task, NO_FILTERS)
    entropies = []

    def nats(noised: Noised) -> torch.Tensor:
        return total(propose(process, noised).nats(noised.clean), noised.masked)

    for t in times:
        sums, counts = [], []
        for noised in scoring(model, noising, noising.at(t, device_of(model)), progress_bar):
            sums.append(where_masked(nats, noised))
            counts.append(noised.masked.sum(-1).cpu())
        sums, counts = (torch.cat(noising.gather(parts)) for parts in (sums, counts))
        check_finite(sums.view(-1, noising.num_samples))
        entropies.append(ratio_estimate(sums, counts, "nats/masked token"))
    return HProfile(times, tuple(entropies))
