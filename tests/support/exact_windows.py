"""Texts of any length in the exact test-bed: a denoiser of four tokens, and the law of blocks.

A window holds at most four tokens and masks. Where it is shorter, its columns are absent (id 4): 625 windows.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from exact import MASK, L, V
from torch import nn

ABSENT = 4  # where a row of a batch is shorter than the longest that is seen
WINDOWS = 5**L


def window_index(seen: np.ndarray) -> np.ndarray:
    """Index of windows of at most L tokens, masks and absent columns: (..., W) -> (...)."""
    missing = np.full(seen.shape[:-1] + (L - seen.shape[-1],), ABSENT)
    return np.concatenate([seen, missing], axis=-1) @ 5 ** np.arange(L)[::-1]


def random_windows(seed: int) -> np.ndarray:
    """A distribution over tokens at every place of every window: (625, L, V)."""
    weights = np.exp(np.random.default_rng(seed).normal(size=(WINDOWS, L, V)))
    return weights / weights.sum(-1, keepdims=True)


class WindowDenoiser(nn.Module):
    """A masked language model of at most L tokens: any function of the tokens that it sees and of their places."""

    def __init__(self, table: np.ndarray):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=V + 1, mask_token_id=MASK, max_position_embeddings=L)
        logits = np.pad(np.log(table), ((0, 0), (0, 0), (0, 1)))
        self.register_buffer("table", torch.tensor(logits))

    def forward(self, input_ids, attention_mask=None):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = torch.where(real.bool(), input_ids, ABSENT).numpy()
        return SimpleNamespace(logits=self.table[window_index(seen)][:, : input_ids.shape[1]])


def blocks_law(
    prompt: tuple[int, ...], new: int, block_length: int, steps: int | None, table: np.ndarray, law_of_step
) -> dict[tuple[int, ...], float]:
    """Law of a text alone whose model sees L tokens, by enumeration: finished texts and their probabilities.

    Args:
        prompt: its masks are filled first, then the `new` tokens in blocks.
        steps: T of every block with t_n = n / T; None for one position at a time, uniformly.
        law_of_step: (what is seen, the revealed places, table) to {values of those places: probability}.
    """
    length = len(prompt) + new
    inside = [i for i, token in enumerate(prompt) if token == MASK]
    blocks = [(inside, len(prompt))] if inside else []
    for begin in range(len(prompt), length, block_length):
        end = min(begin + block_length, length)
        blocks.append((list(range(begin, end)), end))

    law = {tuple(prompt) + (MASK,) * new: 1.0}
    for block, end in blocks:
        start, stop = (0, length) if length <= L else (max(end - L, 0), end)
        for n in range(len(block) if steps is None else steps, 0, -1):
            after = {}
            for text, probability in law.items():
                free = [i - start for i in block if text[i] == MASK]
                for revealed, chance in reveal_law(free, None if steps is None else 1 / n):
                    for values, share in law_of_step(text[start:stop], revealed, table).items():
                        changed = list(text)
                        for i, value in zip(revealed, values, strict=True):
                            changed[start + i] = value
                        after[tuple(changed)] = after.get(tuple(changed), 0) + probability * chance * share

            law = after

    return law


def reveal_law(free: list[int], share: float | None) -> list[tuple[tuple[int, ...], float]]:
    """Reveal sets and their probabilities: every mask with probability `share`, or one of them."""
    if share is None:
        return [((i,), 1 / len(free)) for i in free] or [((), 1.0)]
    subsets = [s for size in range(len(free) + 1) for s in itertools.combinations(free, size)]
    chances = [share ** len(s) * (1 - share) ** (len(free) - len(s)) for s in subsets]
    return [(s, chance) for s, chance in zip(subsets, chances, strict=True) if chance > 0]


def plain_step(seen: tuple[int, ...], revealed: tuple[int, ...], table: np.ndarray) -> dict:
    """p_theta at the revealed places."""
    at = table[window_index(np.array(seen))]
    return {
        values: float(np.prod([at[i, v] for i, v in zip(revealed, values, strict=True)]))
        for values in itertools.product(range(V), repeat=len(revealed))
    }


def weighed_step(energies: np.ndarray, scope: str):
    """The better of two candidates over all masks that are seen or the revealed places, by energies (625, 625)."""

    def law_of_step(seen, revealed, table):
        if not revealed:
            return {(): 1.0}
        masks = tuple(i for i, token in enumerate(seen) if token == MASK)
        places = masks if scope == "sequence" else revealed
        candidates = plain_step(seen, places, table)

        weights = {}
        for values in candidates:
            complete = np.array(seen)
            complete[list(places)] = values
            weights[values] = np.exp(-energies[window_index(np.array(seen)), window_index(complete)])

        law = {}
        for x, p in candidates.items():
            # p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y))
            wins = sum(2 * p * q * weights[x] / (weights[x] + weights[y]) for y, q in candidates.items())
            values = tuple(x[places.index(i)] for i in revealed)
            law[values] = law.get(values, 0) + wins

        return law

    return law_of_step
