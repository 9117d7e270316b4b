"""Speculative sampling on the exact test-bed: denoisers, draft heads and the distributions of texts."""

import numpy as np
import torch
from exact import (
    MASK,
    SEQUENCES,
    L,
    TableCausalLM,
    TableDenoiser,
    V,
    marginals,
    perturbed,
    random_joint,
)
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion

N, TV = 200_000, 0.012
P_AR = 0.6 * random_joint(seed=3) + 0.4 * random_joint(seed=11)
DENOISERS = {
    "right marginals": marginals(P_AR),
    "another model": perturbed(marginals(random_joint(seed=5)), seed=1, scale=2),
    "uniform": np.full((256, L, V), 1 / V),
}
EMPTY = torch.full((N, L), MASK)
combine = EDLMForMaskedDiffusion.from_components


def model(table=DENOISERS["another model"], p_ar=P_AR, head=None, **choices):
    denoiser = with_head(TableDenoiser(table), head)
    return combine(denoiser, TableCausalLM(p_ar), mask_token_id=MASK, **choices)


class TableHead(nn.Module):
    """A draft head that adds terms (V + 1, V + 1, V + 1) of the two tokens before to logits."""

    def __init__(self, terms):
        super().__init__()
        self.register_buffer("terms", torch.as_tensor(terms, dtype=torch.float64))

    def forward(self, hidden, previous_ids):
        return hidden + self.terms[previous_ids[:, 0], previous_ids[:, 1]]


def with_head(denoiser, head):
    denoiser.draft_head = denoiser.hidden_of_drafts = head
    return denoiser


def random_head(scale=2.0):
    """A head that was trained for something else: terms of up to several nats for every pair of tokens."""
    generator = torch.Generator().manual_seed(7)
    return TableHead(scale * torch.randn(V + 1, V + 1, V + 1, generator=generator))


def sample(network, ids=None, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return network.generate(ids, generator=generator, sampler="speculative", **options)


def conditional(prompt, new, joint=P_AR):
    """The law of `new` tokens after a prompt: (3^new,)."""
    begins = (SEQUENCES[:, : len(prompt)] == np.array(prompt, dtype=int)).all(-1)
    continuation = SEQUENCES[:, len(prompt) : len(prompt) + new] @ (V ** np.arange(new)[::-1])
    law = np.bincount(continuation, weights=np.where(begins, joint, 0), minlength=V**new)
    return law / law.sum()


def changed(change):
    """The law of texts whose next token has the distribution `change(prefix, p_AR(. | prefix))`."""
    law = np.ones(len(SEQUENCES))
    for s, text in enumerate(SEQUENCES):
        for i, token in enumerate(text):
            law[s] *= change(text[:i], conditional(text[:i], 1))[token]
    return law
