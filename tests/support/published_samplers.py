"""The published sampling loops at temperature 0, written a second time: one row, plain Python, slow.

An oracle for the package, of which it knows nothing: it imports torch, numpy and the exact test-bed only.

Every loop takes `logits_of`, a function from ids (1, L) to logits (1, L, V), and `ids` (L,) with masks. It returns the
tokens (L,), the number of network calls and one set of positions for every call. A call that reveals nothing leaves an
empty set. Tokens are the likeliest ones. The mask token has probability zero in every distribution. Ties go to the
lowest index, among positions and among tokens.

c_i is the largest probability of position i, m_i the distance of the two largest, H_i the entropy in nats, and the
even share K_n = ceil(masks left / steps left).
"""

import itertools
import math

import numpy as np
import torch
from exact import MASK, SEQUENCES, STATES, L, agrees, state_index


class Row:
    """One row on its way: its tokens, the calls so far and the set that each call revealed."""

    def __init__(self, logits_of, ids, mask_token_id: int):
        self.logits_of = logits_of
        self.mask_token_id = mask_token_id
        self.ids = [int(token) for token in ids]
        self.calls = 0
        self.reveal_sets = []

    def masks(self, begin: int = 0, end: int | None = None) -> list[int]:
        """Masked positions from `begin` up to, not including, `end`."""
        end = len(self.ids) if end is None else end
        return [i for i in range(begin, end) if self.ids[i] == self.mask_token_id]

    def look(self) -> list[list[float]]:
        """Call the network once: p(. | row) of every position, (L, V)."""
        logits = self.logits_of(torch.tensor([self.ids]))[0].double().clone()  # (L, V)
        logits[:, self.mask_token_id] = -math.inf
        self.calls += 1
        return logits.softmax(-1).tolist()

    def reveal(self, positions, p) -> None:
        """Write the likeliest tokens of `positions` and close the call."""
        for i in positions:
            self.ids[i] = likeliest(p[i])
        self.reveal_sets.append(set(positions))

    def result(self) -> tuple[torch.Tensor, int, list[set[int]]]:
        return torch.tensor(self.ids), self.calls, self.reveal_sets


def likeliest(row: list[float]) -> int:
    return row.index(max(row))


def confidence(row: list[float]) -> float:
    return max(row)


def margin(row: list[float]) -> float:
    first, second = sorted(row, reverse=True)[:2]
    return first - second


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def negative_entropy(row: list[float]) -> float:
    return -entropy(row)


# Large is sure, for all three.
SURENESS = {"entropy": negative_entropy, "confidence": confidence, "margin": margin}


def surest(positions: list[int], p, score, count: int) -> list[int]:
    """The `count` positions of the largest score, best first."""
    return sorted(positions, key=lambda i: (-score(p[i]), i))[:count]


def even_share(left: int, steps_left: int) -> int:
    """ceil(left / steps_left), for example 3, 2, 2 for 7 masks in 3 steps."""
    return -(-left // steps_left)


def spans(begin: int, end: int, block_length: int | None) -> list[tuple[int, int]]:
    """Blocks of `block_length` from `begin` to `end`, the last one perhaps shorter. None: one block."""
    if block_length is None:
        return [(begin, end)]
    return [(start, min(start + block_length, end)) for start in range(begin, end, block_length)]


def llada_low_confidence(logits_of, ids, mask_token_id, steps, block_length=None, gen_start=0):
    """LLaDA's `generate` with `remasking="low_confidence"` (arXiv 2502.09992, ML-GSAI/LLaDA `generate.py`).

    Blocks are counted from `gen_start`, from left to right. `steps` is the total: every block gets the same number.
    Step n of a block reveals the masks of the block // steps of the block, and one more in the first
    (masks % steps) steps: the surest ones of the block. No step is skipped, even when it reveals nothing.

    Raises:
        ValueError: for steps that the blocks do not divide and for masks before `gen_start`, which the published loop
            would count in no block.
    """
    row = Row(logits_of, ids, mask_token_id)
    blocks = spans(gen_start, len(row.ids), block_length)
    if steps % len(blocks):
        raise ValueError(f"steps is {steps}. It has to be a multiple of the number of blocks, {len(blocks)}.")
    if row.masks(0, gen_start):
        raise ValueError(f"there are masks before gen_start={gen_start}. Start at or before the first mask.")

    steps_of_block = steps // len(blocks)
    for begin, end in blocks:
        share, rest = divmod(len(row.masks(begin, end)), steps_of_block)
        for n in range(steps_of_block):
            count = share + 1 if n < rest else share
            p = row.look()
            row.reveal(surest(row.masks(begin, end), p, confidence, count), p)

    return row.result()


def dream(logits_of, ids, mask_token_id, steps, alg, share="dream", eps=1e-3):
    """Dream's `diffusion_generate` with `alg_temp` None (arXiv 2508.15487, DreamLM/Dream `generation_utils.py`).

    With share="even" and alg="topk_margin" it is the order of Kim et al. 2025 ("Train for the Worst, Plan for the
    Best", arXiv 2502.06768). The shift of Dream's logits by one position is left to `logits_of`.

    Args:
        alg: "maskgit_plus" (c_i), "topk_margin" (m_i) or "entropy" (-H_i), the largest first.
        share: "dream": times t_0 = 1, ..., t_steps = eps at equal distances, and step n reveals
            int(masks left * (1 - t_(n+1) / t_n)), which can be nothing, the last step all. No step is skipped.
            "even": K_n, and no call when no mask is left.
    """
    score = {"maskgit_plus": confidence, "topk_margin": margin, "entropy": negative_entropy}[alg]
    row = Row(logits_of, ids, mask_token_id)
    times = [1 - (1 - eps) * n / steps for n in range(steps + 1)]

    for n in range(steps):
        masks = row.masks()
        if share == "even":
            if not masks:
                break
            count = even_share(len(masks), steps - n)
        elif n == steps - 1:
            count = len(masks)
        else:
            count = int(len(masks) * (1 - times[n + 1] / times[n]))

        p = row.look()
        row.reveal(surest(masks, p, score, count), p)

    return row.result()


def dilated(logits_of, ids, mask_token_id, steps, offset=0):
    """Dilated order with an offset (after DUS, arXiv 2506.19037, which has fixed strides and no offset).

    Position p of the row, known or masked, has the rank rev((p + offset) mod 2^b): the b bits are read backwards, and
    b is the least with 2^b >= L. Step n reveals the K_n masks of the lowest ranks.
    """
    row = Row(logits_of, ids, mask_token_id)
    bits = (len(row.ids) - 1).bit_length()

    def rank(position: int) -> int:
        number = (position + offset) % 2**bits
        return sum(2 ** (bits - 1 - bit) for bit in range(bits) if number >> bit & 1)

    for n in range(steps):
        masks = row.masks()
        if not masks:
            break
        p = row.look()
        row.reveal(sorted(masks, key=rank)[: even_share(len(masks), steps - n)], p)

    return row.result()


def spaced(logits_of, ids, mask_token_id, steps, distance=None, score="entropy"):
    """The surest masks far from each other, K_n in a step. Not published: the rule that this package proposes.

    A step starts with d = `distance` and an empty set. While the set has fewer than K_n positions, it takes the surest
    of the masks that are at least d positions away from everything in the set. Where there is none, d becomes the
    distance of the mask that is farthest from the set, and stays so for the rest of the step. Tokens that earlier steps
    revealed or that were known keep no mask away.

    Args:
        distance: without one, a step starts with the spacing at which K_n positions fill the span of its masks.
        score: "entropy", "confidence" or "margin", or L numbers of which the least goes first.
    """
    row = Row(logits_of, ids, mask_token_id)
    for n in range(steps):
        masks = row.masks()
        if not masks:
            break
        p = row.look()

        if isinstance(score, str):
            costs = [-SURENESS[score](distribution) for distribution in p]
        else:
            costs = [float(cost) for cost in score]

        count = even_share(len(masks), steps - n)
        d = distance or math.ceil((max(masks) - min(masks) + 1) / count)
        taken = [min(masks, key=lambda i: (costs[i], i))]

        while len(taken) < count:
            gaps = {i: min(abs(i - j) for j in taken) for i in masks if i not in taken}
            d = min(d, max(gaps.values()))
            taken.append(min((i for i in gaps if gaps[i] >= d), key=lambda i: (costs[i], i)))

        row.reveal(taken, p)

    return row.result()


def fast_dllm_threshold(logits_of, ids, mask_token_id, threshold, block_length=None, gen_start=0):
    """Fast-dLLM with a threshold, without caches (arXiv 2505.22618, NVlabs/Fast-dLLM `llada/generate.py`).

    Every call reveals the masks of the block with c_i >= threshold, and always the surest one.
    """
    row = Row(logits_of, ids, mask_token_id)
    for begin, end in spans(gen_start, len(row.ids), block_length):
        while masks := row.masks(begin, end):
            p = row.look()
            best = surest(masks, p, confidence, 1)
            row.reveal(best + [i for i in masks if i not in best and confidence(p[i]) >= threshold], p)
    return row.result()


def fast_dllm_factor(logits_of, ids, mask_token_id, factor, block_length=None, gen_start=0):
    """Fast-dLLM with a factor, without caches (arXiv 2505.22618, NVlabs/Fast-dLLM).

    c_(1) >= c_(2) >= ... are the confidences of the masks of the block. Every call reveals the n surest, n the largest
    with (n + 1)(1 - c_(n)) < factor, and at least one.
    """
    row = Row(logits_of, ids, mask_token_id)
    for begin, end in spans(gen_start, len(row.ids), block_length):
        while masks := row.masks(begin, end):
            p = row.look()
            order = surest(masks, p, confidence, len(masks))
            count = 1
            for n in range(1, len(order) + 1):
                if (n + 1) * (1 - confidence(p[order[n - 1]])) < factor:
                    count = n
            row.reveal(order[:count], p)

    return row.result()


def entropy_bounded(logits_of, ids, mask_token_id, gamma, score="entropy"):
    """The EB sampler (arXiv 2505.24857; nkalyanv99/UNI-D2 `eb_sampler.py`).

    Masks are sorted by `score` ("entropy", "confidence" or "margin"), the surest first. Every call reveals the longest
    prefix U with sum_U H - max_U H <= gamma. One position always satisfies it.
    """
    row = Row(logits_of, ids, mask_token_id)
    while masks := row.masks():
        p = row.look()
        order = surest(masks, p, SURENESS[score], len(masks))
        count = 1
        for n in range(2, len(order) + 1):
            entropies = [entropy(p[i]) for i in order[:n]]
            if sum(entropies) - max(entropies) <= gamma:
                count = n
        row.reveal(order[:count], p)

    return row.result()


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p || q) in nats."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += a * math.log(a / b) if b > 0 else math.inf
    return total


def klass(logits_of, ids, mask_token_id, confidence_threshold, kl_threshold, history, steps):
    """KLASS (arXiv 2511.05664, shkim0116/KLASS).

    A mask is stable when KL(p^n || p^(n-1)) < kl_threshold for the last `history` calls in a row. Step n reveals the
    stable masks with c_i > confidence_threshold. Where there is none it reveals the K_n surest.
    Chosen here: nothing is stable before call history + 1, and the last step reveals everything, so that `steps`
    bounds the calls.
    """
    row = Row(logits_of, ids, mask_token_id)
    before = None
    in_a_row = [0] * len(row.ids)

    for n in range(steps):
        masks = row.masks()
        if not masks:
            break
        p = row.look()
        for i in masks:
            still = before is not None and divergence(p[i], before[i]) < kl_threshold
            in_a_row[i] = in_a_row[i] + 1 if still else 0

        before = p

        ready = [i for i in masks if in_a_row[i] >= history and confidence(p[i]) > confidence_threshold]
        if n == steps - 1:
            ready = masks
        elif not ready:
            ready = surest(masks, p, confidence, even_share(len(masks), steps - n))

        row.reveal(ready, p)

    return row.result()


def llada2_threshold(
    logits_of,
    ids,
    mask_token_id,
    threshold,
    steps,
    block_length=None,
    share="llada2",
):
    """LLaDA2.0's loop (inclusionAI; dLLM `pipelines/llada2/sampler.py`, diffusers `BlockRefinementScheduler`).

    Blocks are counted from the start of the row. Each has up to `steps` calls and none once it is full. When at least
    K of its masks have c_i > threshold, all those are revealed, else the K surest.

    Args:
        share: "llada2": K is block_length // steps, one more in the first (block_length % steps) steps, also where the
            block holds tokens of the prompt. "even": K = K_n, from the masks that are left.
    """
    row = Row(logits_of, ids, mask_token_id)
    for begin, end in spans(0, len(row.ids), block_length):
        base, rest = divmod(block_length or len(row.ids), steps)
        for n in range(steps):
            masks = row.masks(begin, end)
            if not masks:
                break

            if share == "even":
                count = even_share(len(masks), steps - n)
            else:
                count = base + 1 if n < rest else base

            p = row.look()
            above = [i for i in masks if confidence(p[i]) > threshold]
            row.reveal(above if len(above) >= count else surest(masks, p, confidence, count), p)

    return row.result()


def llada21_edit(
    logits_of, ids, mask_token_id, threshold, editing_threshold, block_length=None, given=None, max_post_steps=16
):
    """LLaDA2.1's loop with editing (inclusionAI; dLLM and diffusers `LLaDA2Pipeline`), K = 1.

    A call reveals the masks of the block with c_i > threshold, or the surest one where there is none. In the same call
    each visible, not given token of the block is replaced where the model prefers another token and the probability of
    that one is > editing_threshold. A block ends after a call that found it full and changed nothing, and after
    `max_post_steps` calls that found it full.

    Args:
        given: (L,) bool, tokens that are never replaced. Default: everything that is visible in `ids`.

    Returns:
        tokens, calls, reveal sets, and one set of replaced positions for every call.
    """
    row = Row(logits_of, ids, mask_token_id)
    given = [token != mask_token_id for token in row.ids] if given is None else [bool(flag) for flag in given]

    edit_sets = []
    for begin, end in spans(0, len(row.ids), block_length):
        full = 0
        while not all(given[begin:end]):
            masks = row.masks(begin, end)
            if not masks:
                full += 1
            if full > max_post_steps:
                break

            p = row.look()
            above = [i for i in masks if confidence(p[i]) > threshold]

            edits = []
            for i in range(begin, end):
                changes = i not in masks and not given[i] and likeliest(p[i]) != row.ids[i]
                if changes and confidence(p[i]) > editing_threshold:
                    edits.append(i)

            row.reveal(above or surest(masks, p, confidence, 1), p)
            for i in edits:
                row.ids[i] = likeliest(p[i])
            edit_sets.append(set(edits))

            if not masks and not edits:
                break

    return *row.result(), edit_sets


def remdm_sigma(kind, alpha_s, alpha_t, eta, t=None, t_on=None, t_off=None) -> float:
    """Chance that a visible token becomes a mask in the step from t to s < t (ReMDM, arXiv 2503.00307).

    sigma_max = min(1, (1 - alpha_s) / alpha_t), and 1 where alpha_t = 0.

    Args:
        kind: "cap": min(eta, sigma_max). "rescale": eta * sigma_max. "loop": min(eta, sigma_max) for steps that start
            in (t_off, t_on], where alpha stands still (`remdm_loop_alpha`), and 0 outside.
    """
    sigma_max = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
    if kind == "rescale":
        return eta * sigma_max
    if kind == "loop" and not t_off < t <= t_on:
        return 0.0
    return min(eta, sigma_max)


def remdm_loop_alpha(t, t_on, t_off, alpha_on) -> float:
    """alpha(t) of the loop: from 0 to alpha_on on [t_on, 1], constant on [t_off, t_on], from alpha_on to 1 below."""
    if t > t_on:
        return alpha_on * (1 - t) / (1 - t_on)
    if t > t_off:
        return alpha_on
    return 1 - (1 - alpha_on) * t / t_off


def remdm_step_law(p_theta, ids, mask_token_id, alpha_s, alpha_t, sigma, given=()) -> np.ndarray:
    """q_sigma(z_s | z_t, x_theta) of every position, (L, V) with the mask token (ReMDM, arXiv 2503.00307).

    visible: z_t with 1 - sigma, mask with sigma.
    masked:  p_theta with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),
             mask with (1 - alpha_s - sigma alpha_t) / (1 - alpha_t).

    Args:
        p_theta: (L, V), nothing at the mask token.
        ids: (L,) z_t.
        given: positions that never become masks.
    """
    law = np.zeros(np.shape(p_theta))
    for i, token in enumerate(ids):
        if i in given:
            law[i, token] = 1
        elif token != mask_token_id:
            law[i, token] = 1 - sigma
            law[i, mask_token_id] = sigma
        else:
            law[i] = np.multiply(p_theta[i], (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t))
            law[i, mask_token_id] = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)

    if law.min() < -1e-12:
        raise ValueError(f"sigma={sigma} is larger than sigma_max at alpha_s={alpha_s}, alpha_t={alpha_t}.")
    return law


def remdm_chain_law(table, alphas, sigmas, start=(MASK,) * L, given=()) -> list[np.ndarray]:
    """Laws over STATES at every time of the ReMDM chain on the test-bed: T + 1 arrays (256,), the start first.

    Args:
        table: (256, L, 3) marginals p_theta of every state.
        alphas: T + 1 values from the start of the chain to its end, for example 0, .25, .5, .75, 1.
        sigmas: T values.
    """
    law = np.zeros(len(STATES))
    law[state_index(np.array(start))] = 1
    laws = [law]

    for n, sigma in enumerate(sigmas):
        new = np.zeros_like(law)
        for s in np.flatnonzero(law):
            p_theta = np.pad(table[s], ((0, 0), (0, 1)))
            places = remdm_step_law(p_theta, STATES[s], MASK, alphas[n + 1], alphas[n], sigma, given)
            # positions are independent given the state: (4,) x (4,) x (4,) x (4,) -> (256,) in the order of STATES
            after = places[0]
            for i in range(1, L):
                after = np.multiply.outer(after, places[i])
            new += law[s] * after.ravel()

        law = new
        laws.append(law)

    return laws


def gibbs_law(conditionals, masked_again, given=()) -> np.ndarray:
    """Transition matrix (256, 256) over STATES of one random-scan sweep of the Gibbs corrector.

    A uniform set S of `masked_again` visible, not given positions becomes masks and is drawn anew from
    p_theta(x^S | everything else). Masks of the state stay masks. Where fewer positions are visible, S is all of them.
    Corrector of Koh et al. 2024 ("Conditional [MASK] Discrete Diffusion Language Model"), whose S goes by entropy: the
    uniform S is what keeps the law of a consistent denoiser.

    Args:
        conditionals: (256, 81) p_theta(x_0 | state) as in `exact.chain_law`.
    """
    transition = np.zeros((len(STATES), len(STATES)))
    for s, state in enumerate(STATES):
        free = [i for i in range(L) if state[i] != MASK and i not in given]
        scans = list(itertools.combinations(free, min(masked_again, len(free))))
        for scan in scans:
            asked = state.copy()
            asked[list(scan)] = MASK
            drawn = np.repeat(state[None], len(SEQUENCES), axis=0)
            drawn[:, list(scan)] = SEQUENCES[:, list(scan)]
            np.add.at(transition[s], state_index(drawn), conditionals[state_index(asked)] / len(scans))

    return transition


def exact_conditionals(joint) -> np.ndarray:
    """q_0(x_0 | visible tokens) of every state: (256, 81)."""
    table = np.stack([np.where(agrees(state), joint, 0) for state in STATES])
    return table / table.sum(-1, keepdims=True)


def forward_law(joint, alpha) -> np.ndarray:
    """q(x_t) over STATES for x_0 from `joint`: every token is a mask with chance 1 - alpha. (256,)"""
    law = np.zeros(len(STATES))
    for s, state in enumerate(STATES):
        masks = int((state == MASK).sum())
        law[s] = joint[agrees(state)].sum() * (1 - alpha) ** masks * alpha ** (L - masks)
    return law
