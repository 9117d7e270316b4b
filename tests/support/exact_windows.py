"""Texts of any length in the exact test-bed: a denoiser of four tokens, and the law of blocks.

A window holds at most four tokens and masks. Where it is shorter, its columns are absent (id 4).
There are 625 windows.
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
    """A masked language model of at most L tokens.

    Its logits are any function of the tokens that it sees and of their places.
    """

    def __init__(self, table: np.ndarray):
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=V + 1,
            mask_token_id=MASK,
            max_position_embeddings=L,
        )
        logits = np.pad(np.log(table), ((0, 0), (0, 0), (0, 1)))
        self.register_buffer("table", torch.tensor(logits))

    def forward(self, input_ids, attention_mask=None):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = torch.where(real.bool(), input_ids, ABSENT).numpy()
        logits = self.table[window_index(seen)]
        return SimpleNamespace(logits=logits[:, : input_ids.shape[1]])


def blocks_law(
    prompt: tuple[int, ...],
    new: int,
    block_length: int,
    steps: int | None,
    table: np.ndarray,
    law_of_step,
) -> dict[tuple[int, ...], float]:
    """Enumerate the law of a text alone whose model sees L tokens.

    Args:
        prompt: its masks are filled first, then the `new` tokens in blocks.
        steps: T of every block with t_n = n / T. None reveals one position at a time, uniformly.
        law_of_step: a function of what is seen, the revealed places and the table. It returns
            the probabilities of the values of those places.

    Returns:
        The finished texts and their probabilities.
    """
    length = len(prompt) + new
    law = {tuple(prompt) + (MASK,) * new: 1.0}

    for block, end in blocks_of(prompt, new, block_length):
        # The model sees the whole text, or the last L tokens up to the end of the block
        window = slice(0, length) if length <= L else slice(max(end - L, 0), end)
        num_steps = len(block) if steps is None else steps

        for n in range(num_steps, 0, -1):
            share = None if steps is None else 1 / n
            after = {}
            for text, probability in law.items():
                for changed, chance in step_from(text, block, window, share, table, law_of_step):
                    after[changed] = after.get(changed, 0) + probability * chance

            law = after

    return law


def blocks_of(prompt: tuple[int, ...], new: int, block_length: int) -> list[tuple[list[int], int]]:
    """Positions of the masks of every block and its end, the masks of the prompt first."""
    length = len(prompt) + new
    inside = [i for i, token in enumerate(prompt) if token == MASK]
    blocks = [(inside, len(prompt))] if inside else []

    for begin in range(len(prompt), length, block_length):
        end = min(begin + block_length, length)
        blocks.append((list(range(begin, end)), end))

    return blocks


def step_from(
    text: tuple[int, ...],
    block: list[int],
    window: slice,
    share: float | None,
    table: np.ndarray,
    law_of_step,
):
    """Yield the texts that one step makes of `text`, with their probabilities."""
    seen = text[window]
    free = [i - window.start for i in block if text[i] == MASK]

    for revealed, chance in reveal_law(free, share):
        for values, probability in law_of_step(seen, revealed, table).items():
            changed = list(text)
            for i, value in zip(revealed, values, strict=True):
                changed[window.start + i] = value
            yield tuple(changed), chance * probability


def reveal_law(free: list[int], share: float | None) -> list[tuple[tuple[int, ...], float]]:
    """Reveal sets and their probabilities: every mask with probability `share`, or one of them."""
    if share is None:
        return [((i,), 1 / len(free)) for i in free] or [((), 1.0)]

    law = []
    for size in range(len(free) + 1):
        chance = share**size * (1 - share) ** (len(free) - size)
        if chance > 0:
            law += [(revealed, chance) for revealed in itertools.combinations(free, size)]
    return law


def plain_step(seen: tuple[int, ...], revealed: tuple[int, ...], table: np.ndarray) -> dict:
    """p_theta at the revealed places."""
    at = table[window_index(np.array(seen))]  # (L, V)
    law = {}
    for values in itertools.product(range(V), repeat=len(revealed)):
        factors = [at[i, v] for i, v in zip(revealed, values, strict=True)]
        law[values] = float(np.prod(factors))
    return law


def weighed_step(energies: np.ndarray, scope: str):
    """Return the law of a step that takes one of two candidates by their weights exp(-E).

    Candidates are drawn for all masks that are seen or for the revealed places, by `scope`.
    The energies of all windows at all windows are given: (625, 625).
    """

    def law_of_step(seen, revealed, table):
        if not revealed:
            return {(): 1.0}

        masks = tuple(i for i, token in enumerate(seen) if token == MASK)
        places = masks if scope == "sequence" else revealed
        candidates = plain_step(seen, places, table)

        weights = {}
        noisy = np.array(seen)
        for values in candidates:
            complete = noisy.copy()
            complete[list(places)] = values
            energy = energies[window_index(noisy), window_index(complete)]
            weights[values] = np.exp(-energy)

        law = {}
        for x, p in candidates.items():
            # p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y))
            chance = 0
            for y, q in candidates.items():
                chance += 2 * p * q * weights[x] / (weights[x] + weights[y])

            values = tuple(x[places.index(i)] for i in revealed)
            law[values] = law.get(values, 0) + chance

        return law

    return law_of_step
