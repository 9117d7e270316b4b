"""The exact test-bed: three tokens, four positions, everything enumerated in float64 and wrapped as modules.

q_0(x) is proportional to exp(sum_{i<j} J_ij[x_i, x_j]) with J ~ 1.5 N(0, 1). States are sequences over the three tokens
and the mask (id 3): 256 states, 81 of them fully visible. The autoregressive table also knows a start token (id 4).
"""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

V, L, MASK, START = 3, 4, 3, 4
SEQUENCES = np.array(list(itertools.product(range(V), repeat=L)))  # (81, L)
STATES = np.array(list(itertools.product(range(V + 1), repeat=L)))  # (256, L)
PLACES = (V + 1) ** np.arange(L)[::-1]


def state_index(ids: np.ndarray) -> np.ndarray:
    """Index into STATES of sequences over tokens and mask: (..., L) -> (...)."""
    return ids @ PLACES


def agrees(state: np.ndarray) -> np.ndarray:
    """(81,) which sequences have the visible tokens of a state."""
    return ((state == MASK) | (SEQUENCES == state)).all(-1)


def random_joint(seed: int = 0) -> np.ndarray:
    """q_0 over SEQUENCES, (81,)."""
    rng = np.random.default_rng(seed)
    score = np.zeros(len(SEQUENCES))
    for i, j in itertools.combinations(range(L), 2):
        coupling = 1.5 * rng.normal(size=(V, V))
        score += coupling[SEQUENCES[:, i], SEQUENCES[:, j]]
    weights = np.exp(score - score.max())
    return weights / weights.sum()


def marginals(joint: np.ndarray) -> np.ndarray:
    """Exact p(x_i | visible tokens) of every state: (256, L, V), one-hot where visible."""
    table = np.zeros((len(STATES), L, V))
    for s, state in enumerate(STATES):
        conditional = np.where(agrees(state), joint, 0)
        for i, v in itertools.product(range(L), range(V)):
            table[s, i, v] = conditional[SEQUENCES[:, i] == v].sum()
    return table / table.sum(-1, keepdims=True)


def perturbed(table: np.ndarray, seed: int, scale: float = 0.5) -> np.ndarray:
    """Another table of distributions near `table`."""
    noise = np.random.default_rng(seed).normal(size=table.shape)
    other = np.where(table > 0, table * np.exp(scale * noise), 0)
    return other / other.sum(-1, keepdims=True)


def product_law(table: np.ndarray, s: int) -> np.ndarray:
    """p_theta(x_0 | state s) over SEQUENCES for a table of marginals: (81,)."""
    masked = STATES[s] == MASK
    factors = np.where(masked, table[s][np.arange(L), SEQUENCES], 1)
    return np.where(agrees(STATES[s]), factors.prod(-1), 0)


def chain_law(conditionals, steps: int, start=(MASK,) * L, reveal=lambda n: 1 / n) -> np.ndarray:
    """Law over SEQUENCES of the T-step chain on t_n = n / T whose joint at state s is conditionals[s]: (256, 81).

    `conditionals` may be a function of the step n. `reveal` gives the probability that step n reveals a mask.
    """
    joint_at = conditionals if callable(conditionals) else lambda n: conditionals
    law = np.zeros(len(STATES))
    law[state_index(np.array(start))] = 1

    for n in range(steps, 0, -1):
        conditionals, new = joint_at(n), np.zeros_like(law)
        for s in np.flatnonzero(law):
            for kept in itertools.product([False, True], repeat=L):
                kept = np.array(kept)
                if (kept & (STATES[s] != MASK)).any():
                    continue
                masked = int((STATES[s] == MASK).sum())
                chance = (1 - reveal(n)) ** kept.sum() * reveal(n) ** (masked - kept.sum())
                if chance == 0:
                    continue
                target = state_index(np.where(kept, MASK, SEQUENCES))
                np.add.at(new, target, law[s] * chance * conditionals[s])

        law = new

    return law[state_index(SEQUENCES)]


def one_at_a_time_law(products: np.ndarray) -> np.ndarray:
    """Law over SEQUENCES when one uniformly chosen mask is revealed at a time, from products (256, 81) by state."""
    law = np.zeros(len(STATES))
    law[state_index(np.full(L, MASK))] = 1
    for left in range(L, 0, -1):
        new = np.zeros_like(law)
        for s in np.flatnonzero(law):
            for i in np.flatnonzero(STATES[s] == MASK):
                after = np.repeat(STATES[s][None], len(SEQUENCES), 0)
                after[:, i] = SEQUENCES[:, i]
                np.add.at(new, state_index(after), law[s] / left * products[s])
        law = new

    return law[state_index(SEQUENCES)]


class TableDenoiser(nn.Module):
    """A masked language model whose logits are the logarithms of a table (256, L, V) of marginals."""

    def __init__(self, table: np.ndarray, dtype: torch.dtype = torch.float64):
        super().__init__()
        # The mask token gets a finite logit that must not matter
        logits = np.full((len(STATES), L, V + 1), -3.0)
        with np.errstate(divide="ignore"):
            logits[..., :V] = np.maximum(np.log(table), -1e30)
        self.register_buffer("table", torch.tensor(logits, dtype=dtype))
        self.calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        index = (input_ids * torch.tensor(PLACES, device=input_ids.device)).sum(-1)
        return SimpleNamespace(logits=self.table[index])


class TableCausalLM(nn.Module):
    """The chain rule of a joint (81,) as a causal language model over 3 tokens, the mask and a start token."""

    def __init__(
        self,
        joint: np.ndarray,
        dtype: torch.dtype = torch.float64,
        start: int | None = START,
    ):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=5, bos_token_id=start)
        for i in range(L):
            table = np.zeros((V**i, V))
            np.add.at(table, (SEQUENCES[:, :i] @ (V ** np.arange(i)[::-1]), SEQUENCES[:, i]), joint)
            # Mask and start token: finite logits that must not matter
            logits = np.full((V**i, 5), 1.5)
            logits[:, :V] = np.log(table / table.sum(-1, keepdims=True))
            self.register_buffer(f"table{i}", torch.tensor(logits, dtype=dtype))

    def forward(self, input_ids, attention_mask=None):
        with_start = self.config.bos_token_id is not None
        logits = []
        for j in range(input_ids.shape[1]):
            prefix = input_ids[:, 1 : j + 1] if with_start else input_ids[:, : j + 1]
            code = (prefix * torch.tensor(V ** np.arange(prefix.shape[1])[::-1].copy())).sum(-1)
            logits.append(getattr(self, f"table{min(prefix.shape[1], L - 1)}")[code % V ** (L - 1)])
        return SimpleNamespace(logits=torch.stack(logits, dim=1))


# ------------------------------------------------------------------------------------------- rows of unequal length

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
