"""Energies of an autoregressive model by their definition, and what its network reads for them."""

import torch
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.network_facts import accepts, start_token


@torch.no_grad()
def by_definition(
    model: EDLMForMaskedDiffusion,
    ids: torch.Tensor,
    noisy: torch.Tensor,
) -> torch.Tensor:
    """log p_theta(x_0|x_t) - log p_AR(x_0) (B, k), the causal model reading whole texts without a cache.

    The mask is the last token id, and candidates (B, k, L) differ from x_t (B, L) at masks alone.
    """
    mask = model.config.mask_token_id
    network = model.energy_model
    start = start_token(network.config)
    text = ids.flatten(0, 1)
    if start is not None:
        text = nn.functional.pad(text, (1, 0), value=start)

    # Without a start token the first token is context, which is visible here
    wanted = {"use_cache": False, "return_dict": True}
    options = {name: value for name, value in wanted.items() if accepts(network, name)}
    logits = network(input_ids=text[:, :-1], **options).logits[..., :mask].float()
    log_ar = logits.log_softmax(-1).gather(-1, text[:, 1:, None]).sum((-2, -1)).view(ids.shape[:2])

    log_theta = model(noisy).logits[..., :mask].log_softmax(-1)
    log_theta = log_theta.unsqueeze(1).expand(-1, ids.shape[1], -1, -1)
    log_theta = log_theta.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (log_theta * (noisy == mask).unsqueeze(1)).sum(-1) - log_ar


def shapes_read(network: nn.Module) -> list[tuple[int, int]]:
    """A list that grows by the shape of the ids of every call."""
    shapes = []
    network.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)),
        with_kwargs=True,
    )
    return shapes
