"""The exact test-bed: three tokens and four positions, enumerated in float64, wrapped as modules.

q_0(x) is proportional to exp(sum_{i<j} J_ij[x_i, x_j]) with J ~ 1.5 N(0, 1). States are sequences
over the three tokens and the mask (id 3): 256 states, 81 of them fully visible. The autoregressive
table also knows a start token (id 4).
"""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

V = 3  # tokens
L = 4  # positions
MASK = 3
START = 4
SEQUENCES = np.array(list(itertools.product(range(V), repeat=L)))  # (81, L)
STATES = np.array(list(itertools.product(range(V + 1), repeat=L)))  # (256, L)
PLACES = (V + 1) ** np.arange(L)[::-1]  # of the digits of a state


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
        coupling = 1.5 * rng.normal(size=(V, V))  # J_ij
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


def frequencies(tokens: torch.Tensor) -> np.ndarray:
    """Shares (V^n,) of all sequences of n tokens among sampled ones (N, n) without masks."""
    assert tokens.min() >= 0 and tokens.max() < V
    n = tokens.shape[1]
    index = tokens.numpy() @ (V ** np.arange(n)[::-1])
    return np.bincount(index, minlength=V**n) / len(index)


def distance(tokens: torch.Tensor, law: np.ndarray) -> float:
    """Total variation of sampled sequences (N, n) and a law (V^n,)."""
    assert abs(law.sum() - 1) < 1e-12
    return np.abs(frequencies(tokens) - law).sum() / 2


def product_law(table: np.ndarray, s: int) -> np.ndarray:
    """p_theta(x_0 | state s) over SEQUENCES for a table of marginals: (81,)."""
    masked = STATES[s] == MASK
    factors = np.where(masked, table[s][np.arange(L), SEQUENCES], 1)
    return np.where(agrees(STATES[s]), factors.prod(-1), 0)


def chain_law(
    conditionals,
    steps: int,
    start=(MASK,) * L,
    reveal=lambda n: 1 / n,
) -> np.ndarray:
    """Law over SEQUENCES of the T-step chain on t_n = n / T: (81,).

    Args:
        conditionals: the joint of all tokens at every state, (256, 81), or a function of the
            step n that returns it.
        reveal: the probability that step n reveals a mask, a function of n.
    """
    joint_at = conditionals if callable(conditionals) else lambda n: conditionals
    law = np.zeros(len(STATES))
    law[state_index(np.array(start))] = 1

    for n in range(steps, 0, -1):
        joints = joint_at(n)
        chance = reveal(n)
        after = np.zeros_like(law)
        for s in np.flatnonzero(law):
            masked = STATES[s] == MASK
            for kept in subsets_of(masked):
                num_kept = kept.sum()
                num_revealed = masked.sum() - num_kept
                probability = (1 - chance) ** num_kept * chance**num_revealed
                if probability == 0:
                    continue

                # x_s has the masks that are kept and is x_0 elsewhere
                target = state_index(np.where(kept, MASK, SEQUENCES))
                np.add.at(after, target, law[s] * probability * joints[s])

        law = after

    return law[state_index(SEQUENCES)]


def subsets_of(masked: np.ndarray) -> list[np.ndarray]:
    """All subsets of the masks of a state, each (L,) bool."""
    every = np.array(list(itertools.product([False, True], repeat=L)))
    return [kept for kept in every if not (kept & ~masked).any()]


def one_at_a_time_law(products: np.ndarray) -> np.ndarray:
    """Law over SEQUENCES when one uniformly chosen mask is revealed at a time: (81,).

    Args:
        products: the joint of all tokens at every state, (256, 81).
    """
    law = np.zeros(len(STATES))
    law[state_index(np.full(L, MASK))] = 1

    for left in range(L, 0, -1):
        after = np.zeros_like(law)
        for s in np.flatnonzero(law):
            for i in np.flatnonzero(STATES[s] == MASK):
                revealed = np.repeat(STATES[s][None], len(SEQUENCES), 0)  # (81, L)
                revealed[:, i] = SEQUENCES[:, i]
                np.add.at(after, state_index(revealed), law[s] / left * products[s])

        law = after

    return law[state_index(SEQUENCES)]


class TableDenoiser(nn.Module):
    """A masked language model whose logits are the logarithms of marginals (256, L, V)."""

    def __init__(self, table: np.ndarray, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.calls = 0

        # The mask token gets a finite logit that must not matter
        logits = np.full((len(STATES), L, V + 1), -3.0)
        with np.errstate(divide="ignore"):
            logits[..., :V] = np.maximum(np.log(table), -1e30)
        self.register_buffer("table", torch.tensor(logits, dtype=dtype))

    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        index = (input_ids * torch.tensor(PLACES, device=input_ids.device)).sum(-1)
        return SimpleNamespace(logits=self.table[index])


class TableCausalLM(nn.Module):
    """The chain rule of a joint (81,) as a causal language model.

    Its vocabulary is three tokens, the mask and a start token.
    """

    def __init__(
        self,
        joint: np.ndarray,
        dtype: torch.dtype = torch.float64,
        start: int | None = START,
    ):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=5, bos_token_id=start)

        # q_0(x_i | x_<i): one table (V^i, 5) for every position
        for i in range(L):
            prefix = SEQUENCES[:, :i] @ (V ** np.arange(i)[::-1])
            table = np.zeros((V**i, V))
            np.add.at(table, (prefix, SEQUENCES[:, i]), joint)

            # Mask and start token: finite logits that must not matter
            logits = np.full((V**i, 5), 1.5)
            logits[:, :V] = np.log(table / table.sum(-1, keepdims=True))
            self.register_buffer(f"table{i}", torch.tensor(logits, dtype=dtype))

    def forward(self, input_ids, attention_mask=None):
        with_start = self.config.bos_token_id is not None
        logits = []
        for j in range(input_ids.shape[1]):
            prefix = input_ids[:, 1 : j + 1] if with_start else input_ids[:, : j + 1]
            length = prefix.shape[1]
            places = torch.tensor(V ** np.arange(length)[::-1].copy())
            code = (prefix * places).sum(-1)

            # Behind a whole sequence there are logits of the last table, which must not matter
            table = getattr(self, f"table{min(length, L - 1)}")
            logits.append(table[code % V ** (L - 1)])

        return SimpleNamespace(logits=torch.stack(logits, dim=1))
