"""The second writing of the published loops (`tests/support/published_samplers.py`), by hand-computed examples."""

import ast
import inspect
import math

import exact
import numpy as np
import published_samplers
import pytest
import torch
from exact import MASK, SEQUENCES, STATES, L
from published_samplers import (
    dilated,
    dream,
    entropy_bounded,
    exact_conditionals,
    fast_dllm_factor,
    fast_dllm_threshold,
    forward_law,
    gibbs_law,
    klass,
    llada2_threshold,
    llada21_edit,
    llada_low_confidence,
    remdm_chain_law,
    remdm_loop_alpha,
    remdm_sigma,
    remdm_step_law,
    spaced,
)

# Tokens 0, 1, 2 and the mask, 3. X has the largest c, Y the largest m, Z the least H.
X = (0.55, 0.30, 0.15)  # c = .55, m = .25, H = .975
Y = (0.23, 0.54, 0.23)  # c = .54, m = .31, H = 1.009
Z = (0.00, 0.49, 0.51)  # c = .51, m = .02, H = .693


def always(rows):
    """A network that gives the same distributions (L, 3) whatever it sees. Its mask token is likelier than anything."""
    logits = torch.tensor(rows, dtype=torch.float64).log()
    logits = torch.cat([logits, torch.full((len(rows), 1), 5.0)], dim=1)
    return lambda ids: logits[None]


def in_turn(tables):
    """A network that gives the n-th table at its n-th call, the last one from then on."""
    networks = [always(rows) for rows in tables]
    return lambda ids: networks.pop(0)(ids) if len(networks) > 1 else networks[0](ids)


def sure(*confidences):
    """Rows whose likeliest token, 0, has these probabilities. The others share the rest."""
    return [(c, (1 - c) / 2, (1 - c) / 2) for c in confidences]


def masks(length):
    return torch.full((length,), MASK)


def random_network(seed=0, length=12, vocabulary=6):
    """Logits that are a random function of all tokens, and the id of its mask token."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(length, vocabulary, length * vocabulary, generator=generator, dtype=torch.float64)

    def logits_of(ids):
        seen = torch.nn.functional.one_hot(ids[0], vocabulary).double().flatten()
        return (weights @ seen)[None]

    return logits_of, vocabulary - 1


LOOPS = {
    "llada": (llada_low_confidence, {"steps": 5}),
    "llada in blocks": (llada_low_confidence, {"steps": 6, "block_length": 4}),
    "maskgit_plus": (dream, {"steps": 5, "alg": "maskgit_plus"}),
    "topk_margin": (dream, {"steps": 5, "alg": "topk_margin"}),
    "entropy": (dream, {"steps": 20, "alg": "entropy"}),
    "even": (dream, {"steps": 5, "alg": "entropy", "share": "even"}),
    "dilated": (dilated, {"steps": 5, "offset": 3}),
    "spaced": (spaced, {"steps": 3, "distance": 5}),
    "spaced by margin": (spaced, {"steps": 20, "distance": 5, "score": "margin"}),
    "evenly spaced": (spaced, {"steps": 4}),
    "threshold": (fast_dllm_threshold, {"threshold": 0.9}),
    "threshold in blocks": (fast_dllm_threshold, {"threshold": 0.9, "block_length": 5}),
    "factor": (fast_dllm_factor, {"factor": 1.0}),
    "factor in blocks": (fast_dllm_factor, {"factor": 1.0, "block_length": 5}),
    "entropy bound": (entropy_bounded, {"gamma": 0.5}),
    "entropy bound by margin": (entropy_bounded, {"gamma": 0.5, "score": "margin"}),
    "klass": (klass, {"confidence_threshold": 0.6, "kl_threshold": 0.5, "history": 1, "steps": 4}),
    "llada2": (llada2_threshold, {"threshold": 0.95, "steps": 3, "block_length": 4}),
    "llada2, even": (llada2_threshold, {"threshold": 0.95, "steps": 3, "block_length": 5, "share": "even"}),
    "edit": (llada21_edit, {"threshold": 0.7, "editing_threshold": 0.5, "block_length": 5}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_loop_keeps_what_is_known_and_reveals_every_mask_once(name):
    loop, options = LOOPS[name]
    logits_of, mask = random_network()
    seen = []

    def counted(ids):
        seen.append(ids.clone())
        assert ids.shape == (1, 12)
        return logits_of(ids)

    ids = torch.tensor([mask, 1, mask, mask, 0, mask, mask, mask, 2, 3, mask, mask])
    before = ids.clone()
    tokens, calls, reveals, *_ = loop(counted, ids, mask, **options)

    assert torch.equal(ids, before)
    assert torch.equal(tokens[ids != mask], ids[ids != mask])
    assert (tokens != mask).all()
    assert calls == len(seen) == len(reveals)
    assert sorted(i for revealed in reveals for i in revealed) == torch.nonzero(ids == mask).flatten().tolist()

    # What a call revealed was masked before it, is visible at the next, and holds the likeliest token but the mask.
    edited = name == "edit"
    for n, revealed in enumerate(reveals):
        after = seen[n + 1][0] if n + 1 < calls else tokens
        best = logits_of(seen[n])[0, :, :mask].argmax(-1)
        for i in revealed:
            assert seen[n][0, i] == mask
            assert after[i] == best[i]
        if not edited:
            rest = [i for i in range(12) if i not in revealed]
            assert torch.equal(after[rest], seen[n][0, rest])


def test_the_second_writing_knows_nothing_of_the_package():
    tree = ast.parse(inspect.getsource(published_samplers))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert modules == {"itertools", "math", "numpy", "torch", "exact"}


def test_llada_gives_the_remainder_to_the_first_steps():
    tokens, calls, reveals = llada_low_confidence(always(sure(0.5, 0.9, 0.7, 0.8)), masks(4), MASK, steps=3)
    assert (calls, reveals) == (3, [{1, 3}, {2}, {0}])
    assert tokens.tolist() == [0, 0, 0, 0]
    # more steps than masks: the last ones reveal nothing and are called all the same
    _, calls, reveals = llada_low_confidence(always(sure(0.5, 0.9)), masks(2), MASK, steps=4)
    assert (calls, reveals) == (4, [{1}, {0}, set(), set()])


def test_llada_fills_a_block_before_it_looks_at_the_next():
    network = always(sure(0.4, 0.5, 0.6, 0.7, 0.9, 0.8))
    _, calls, reveals = llada_low_confidence(network, masks(6), MASK, steps=4, block_length=3)
    assert (calls, reveals) == (4, [{2, 1}, {0}, {4, 5}, {3}])
    # blocks are counted from the end of the prompt
    ids = torch.tensor([0, 1, MASK, MASK, MASK, MASK])
    _, calls, reveals = llada_low_confidence(network, ids, MASK, steps=4, block_length=2, gen_start=2)
    assert (calls, reveals) == (4, [{3}, {2}, {4}, {5}])
    with pytest.raises(ValueError, match="multiple of the number of blocks, 2"):
        llada_low_confidence(network, masks(6), MASK, steps=3, block_length=3)
    with pytest.raises(ValueError, match="masks before gen_start=2"):
        llada_low_confidence(network, masks(6), MASK, steps=2, gen_start=2)


def test_dream_counts_from_its_times():
    """8 masks, 4 steps: 8 x .24975 = 1.998, 7 x .3329 = 2.33, 5 x .4990 = 2.495, then the last 3."""
    network = always(sure(0.41, 0.42, 0.43, 0.44, 0.45, 0.46, 0.47, 0.48))
    _, calls, reveals = dream(network, masks(8), MASK, steps=4, alg="maskgit_plus")
    assert (calls, reveals) == (4, [{7}, {6, 5}, {4, 3}, {2, 1, 0}])
    # 2 masks: 2 x .24975, 2 x .3329, 2 x .4990 are all below one
    _, calls, reveals = dream(always(sure(0.41, 0.42)), masks(2), MASK, steps=4, alg="entropy")
    assert (calls, reveals) == (4, [set(), set(), set(), {0, 1}])


def test_dream_in_even_shares_stops_when_nothing_is_masked():
    network = always(sure(0.41, 0.42, 0.43, 0.44, 0.45, 0.46, 0.47))
    _, calls, reveals = dream(network, masks(7), MASK, steps=3, alg="topk_margin", share="even")
    assert (calls, reveals) == (3, [{6, 5, 4}, {3, 2}, {1, 0}])
    _, calls, reveals = dream(network, masks(7), MASK, steps=9, alg="topk_margin", share="even")
    assert (calls, reveals) == (7, [{6}, {5}, {4}, {3}, {2}, {1}, {0}])


@pytest.mark.parametrize(
    ("alg", "order"),
    [("maskgit_plus", [1, 0, 2]), ("topk_margin", [0, 1, 2]), ("entropy", [2, 1, 0])],
)
def test_dream_orders_by_its_three_scores(alg, order):
    tokens, _, reveals = dream(always([Y, X, Z]), masks(3), MASK, steps=3, alg=alg, share="even")
    assert reveals == [{i} for i in order]
    assert tokens.tolist() == [1, 0, 2]


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_ties_go_to_the_lowest_index(alg):
    rows = [(0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5)]
    _, _, reveals = dream(always([rows[0]] * 3), masks(3), MASK, steps=3, alg=alg, share="even")
    assert reveals == [{0}, {1}, {2}]
    tokens, _, _ = dream(always([(0.25, 0.375, 0.375)]), masks(1), MASK, steps=1, alg=alg)
    assert tokens.tolist() == [1]


def test_threshold_takes_all_that_are_sure_and_always_the_best():
    network = always(sure(0.95, 0.92, 0.5, 0.85))
    _, calls, reveals = fast_dllm_threshold(network, masks(4), MASK, threshold=0.9)
    assert (calls, reveals) == (3, [{0, 1}, {3}, {2}])
    _, calls, reveals = fast_dllm_threshold(network, masks(4), MASK, threshold=0.9, block_length=3)
    assert (calls, reveals) == (3, [{0, 1}, {2}, {3}])
    ids = torch.tensor([MASK, 0, MASK, MASK])  # a known position is never revealed, however sure it is
    assert fast_dllm_threshold(network, ids, MASK, threshold=0.9)[2] == [{0}, {3}, {2}]
    # one half is exact in floats: the threshold itself counts
    halves = always([(0.5, 0.5, 0)] * 2)
    assert fast_dllm_threshold(halves, masks(2), MASK, threshold=0.5)[2] == [{0, 1}]


def test_factor_compares_the_least_sure_with_the_number():
    """2 x .01 = .02, 3 x .1 = .3, 4 x .3 = 1.2, then 2 x .3 = .6 and 2 x .4 = .8, which one position alone may."""
    network = always(sure(0.7, 0.99, 0.6, 0.9))
    assert fast_dllm_factor(network, masks(4), MASK, factor=0.5)[1:] == (3, [{1, 3}, {0}, {2}])
    assert fast_dllm_factor(network, masks(4), MASK, factor=0.25)[1:] == (4, [{1}, {3}, {0}, {2}])
    assert fast_dllm_factor(network, masks(4), MASK, factor=1.21)[1:] == (2, [{1, 3, 0}, {2}])
    assert fast_dllm_factor(network, masks(4), MASK, factor=0.5, block_length=2)[1:] == (4, [{1}, {0}, {3}, {2}])


@pytest.mark.parametrize(
    ("score", "gamma", "reveals"),
    [
        # Z, X, Y: the sums without the largest are 0, .693, 1.668
        ("entropy", 0.1, [{2}, {1}, {0}]),
        ("entropy", 0.7, [{2, 1}, {0}]),
        ("entropy", 1.7, [{0, 1, 2}]),
        # X, Y, Z: 0, .975, 1.668 (the largest is the second), then without X: 0, .693
        ("confidence", 0.7, [{1}, {0, 2}]),
        ("confidence", 1.0, [{1, 0}, {2}]),
        ("confidence", 1.7, [{0, 1, 2}]),
        # Y, X, Z
        ("margin", 0.7, [{0}, {1, 2}]),
        ("margin", 1.0, [{1, 0}, {2}]),
    ],
)
def test_entropy_bound_leaves_the_largest_out_of_the_sum(score, gamma, reveals):
    _, calls, revealed = entropy_bounded(always([Y, X, Z]), masks(3), MASK, gamma=gamma, score=score)
    assert (calls, revealed) == (len(reveals), reveals)


def test_klass_waits_until_a_sure_position_stands_still():
    first = sure(0.7, 0.8, 0.9, 0.5)
    second = sure(0.7, 0.8, 0.5, 0.5)
    network = [first, second, second]
    options = {"confidence_threshold": 0.6, "kl_threshold": 0.01, "steps": 4}

    # call 1: no past, so the surest (2). call 2: 0, 1 and 3 stand still, 3 is not sure. call 3: nothing is sure.
    reveals = klass(in_turn(network), masks(4), MASK, history=1, **options)[2]
    assert reveals == [{2}, {0, 1}, {3}]
    # two calls in a row: call 2 is too early (one more by confidence), call 3 not
    reveals = klass(in_turn(network), masks(4), MASK, history=2, **options)[2]
    assert reveals == [{2}, {1}, {0}, {3}]
    # what moves starts to count again: .5 -> .9 has KL .9 log(.9 / .5) + .1 log(.1 / .5) = .368
    moving = [sure(0.5, 0.8), sure(0.9, 0.8), sure(0.9, 0.8)]
    ids = torch.tensor([MASK, 0])
    assert klass(in_turn(moving), ids, MASK, history=1, **options)[2] == [{0}]
    wide = [rows + sure(0.55, 0.55, 0.55) for rows in moving]
    ids = torch.tensor([MASK, 0, MASK, MASK, MASK])
    assert klass(in_turn(wide), ids, MASK, history=1, **options | {"steps": 8})[2][:3] == [{2}, {0}, {3}]
    loose = options | {"steps": 8, "kl_threshold": 0.4}
    assert klass(in_turn([moving[0] * 2, moving[1] * 2]), masks(4), MASK, history=1, **loose)[2] == [{1}, {0, 2, 3}]


def test_klass_measures_from_the_new_to_the_old():
    """KL(new || old) = log 2 = .693, KL(old || new) is infinite."""
    tables = [[(0.5, 0.5, 0), (0.9, 0.1, 0)], [(1, 0, 0), (0.9, 0.1, 0)]]
    options = {"confidence_threshold": 0.95, "history": 1, "steps": 3}
    tables = [rows + [(0.4, 0.3, 0.3)] for rows in tables]
    assert klass(in_turn(tables), masks(3), MASK, kl_threshold=0.7, **options)[2] == [{1}, {0}, {2}]
    assert published_samplers.divergence((1, 0), (0.5, 0.5)) == pytest.approx(math.log(2))
    assert published_samplers.divergence((0.5, 0.5), (1, 0)) == math.inf


def test_klass_counts_calls_in_a_row():
    """Position 0 stands still, moves and stands still twice. The others move always and go by confidence."""
    left, right = (0.7, 0.2, 0.1), (0.2, 0.7, 0.1)
    restless = [(0.95, 0.05, 0), (0.05, 0.95, 0)]
    tables = [[row] + [restless[n % 2]] * 5 for n, row in enumerate([left, left, right, right, right, right])]
    options = {"confidence_threshold": 0.6, "kl_threshold": 0.01, "history": 2, "steps": 8}
    assert klass(in_turn(tables), masks(6), MASK, **options)[2] == [{1}, {2}, {3}, {4}, {0}, {5}]


def test_klass_fills_the_row_in_its_last_step():
    """Position 3 alone is stable and sure then."""
    still = always(sure(0.9, 0.9, 0.8, 0.8, 0.5, 0.5))
    reveals = klass(still, masks(6), MASK, confidence_threshold=0.6, kl_threshold=0.01, history=1, steps=2)[2]
    assert reveals == [{0, 1, 2}, {3, 4, 5}]


def test_dilated_reads_the_bits_backwards():
    network = always(sure(*[0.5] * 8))
    assert dilated(network, masks(8), MASK, steps=4)[1:] == (4, [{0, 4}, {2, 6}, {1, 5}, {3, 7}])
    assert dilated(network, masks(8), MASK, steps=4, offset=1)[2] == [{7, 3}, {1, 5}, {0, 4}, {2, 6}]
    assert dilated(network, masks(8), MASK, steps=4, offset=9)[2] == [{7, 3}, {1, 5}, {0, 4}, {2, 6}]
    # five positions: ranks 0, 4, 2, 6, 1 of eight
    assert dilated(always(sure(*[0.5] * 5)), masks(5), MASK, steps=5)[2] == [{0}, {4}, {2}, {1}, {3}]
    # the index is that of the row, not that among the masks
    ids = torch.tensor([0, MASK, 0, MASK, MASK, 0, 0, MASK])
    assert dilated(network, ids, MASK, steps=2)[2] == [{4, 1}, {3, 7}]


def test_spaced_keeps_its_distance_within_a_step():
    network = always(sure(*[0.5] * 8))
    rising = list(range(8))
    assert spaced(network, masks(8), MASK, 4, distance=4, score=rising)[1:] == (4, [{0, 4}, {1, 5}, {2, 6}, {3, 7}])
    assert spaced(network, masks(8), MASK, 8, distance=4, score=rising)[2] == [{i} for i in range(8)]
    # 0 and 4, then nothing is 4 away from both: 7 is 3 away, then 2 is
    assert spaced(network, masks(8), MASK, 2, distance=4, score=rising)[2] == [{0, 4, 7, 2}, {1, 5, 3, 6}]
    # 3, then no mask is 5 away: 0 is 3 away from it, 5 is 2. With K = 3 of five masks: 3, 0, 5
    scores = [5, 1, 4, 0, 3, 2]
    assert spaced(always(sure(*[0.5] * 6)), masks(6), MASK, 1, distance=5, score=scores)[2] == [{0, 1, 2, 3, 4, 5}]
    ids = torch.tensor([MASK, MASK, 0, MASK, MASK, MASK])
    assert spaced(always(sure(*[0.5] * 6)), ids, MASK, 2, distance=5, score=scores)[2] == [{3, 0, 5}, {1, 4}]


def test_without_a_distance_the_positions_of_a_step_fill_the_span():
    network = always(sure(*[0.5] * 8))
    rising = list(range(8))
    # d = ceil(8 / 2), and ceil(6 / 2) for masks at 1, ..., 6
    assert spaced(network, masks(8), MASK, 4, score=rising)[2] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    ids = torch.tensor([0, MASK, MASK, MASK, MASK, MASK, MASK, 0])
    assert spaced(network, ids, MASK, 3, score=rising)[2] == [{1, 4}, {2, 5}, {3, 6}]


@pytest.mark.parametrize(("score", "first"), [("confidence", 2), ("margin", 0), ("entropy", 4)])
def test_spaced_goes_by_its_score(score, first):
    """The first is Y, X or Z. The second of its step is at least three positions away."""
    far = (0.4, 0.35, 0.25)
    rows = [Y, far, X, far, Z, far]
    _, _, reveals = spaced(always(rows), masks(6), MASK, steps=6, distance=3, score=score)
    assert reveals[0] == {first}
    _, _, reveals = spaced(always(rows), masks(6), MASK, steps=3, distance=3, score=score)
    assert first in reveals[0]
    assert min(abs(i - first) for i in reveals[0] - {first}) >= 3


def test_llada2_takes_its_share_where_too_few_are_sure():
    network = always(sure(0.5, 0.97, 0.96, 0.6, 0.7, 0.8))
    options = {"threshold": 0.95, "steps": 3}
    # K = 2, 2, 2: two are above, then none and the two best
    assert llada2_threshold(network, masks(6), MASK, **options)[1:] == (3, [{1, 2}, {5, 4}, {3, 0}])
    # K = 1 of a block of three: two are above, then one alone
    assert llada2_threshold(network, masks(6), MASK, block_length=3, **options)[2] == [{1, 2}, {0}, {5}, {4}, {3}]
    # one is above where K = 2: the two best
    assert llada2_threshold(always(sure(0.5, 0.97, 0.9, 0.6)), masks(4), MASK, 0.95, 2)[2] == [{1, 2}, {3, 0}]
    # K comes from the length of the block (3, 3), or from the masks that are left (2, then 2)
    ids = torch.tensor([MASK, 0, 0, MASK, MASK, MASK])
    assert llada2_threshold(network, ids, MASK, threshold=0.95, steps=2)[2] == [{5, 4, 3}, {0}]
    assert llada2_threshold(network, ids, MASK, threshold=0.95, steps=2, share="even")[2] == [{5, 4}, {3, 0}]
    # above means above: one half is exact
    halves = always([(0.5, 0.5, 0)] * 4)
    assert llada2_threshold(halves, masks(4), MASK, threshold=0.5, steps=4)[2] == [{0}, {1}, {2}, {3}]
    assert llada2_threshold(halves, masks(4), MASK, threshold=0.49, steps=4)[2] == [{0, 1, 2, 3}]


def test_edit_replaces_what_the_model_now_rejects():
    first = [(0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.1, 0.9, 0), (0.2, 0.2, 0.6)]
    second = [(0.05, 0.05, 0.9), (0.5, 0.4, 0.1), (0.9, 0.1, 0), (0.3, 0.3, 0.4)]
    ids = torch.tensor([MASK, MASK, 0, MASK])  # position 2 is given
    options = {"threshold": 0.7, "editing_threshold": 0.85}

    # call 1 writes 0 (.8). Call 2 replaces it (.9 > .85) and writes the best mask, 1 (.5). Calls 3 and 4 end it.
    tokens, calls, reveals, edits = llada21_edit(in_turn([first, second]), ids, MASK, **options)
    assert tokens.tolist() == [2, 0, 0, 2]
    assert (calls, reveals, edits) == (4, [{0}, {1}, {3}, set()], [set(), {0}, set(), set()])
    # a threshold that nothing passes leaves the first token
    options = {"threshold": 0.7, "editing_threshold": 0.95}
    assert llada21_edit(in_turn([first, second]), ids, MASK, **options)[0].tolist() == [0, 0, 0, 2]
    # what is visible may be edited where it is not given
    free = torch.zeros(4, dtype=torch.bool)
    tokens = llada21_edit(always(first), ids, MASK, threshold=0.7, editing_threshold=0.85, given=free)[0]
    assert tokens.tolist() == [0, 0, 1, 2]


def test_edit_ends_a_block_that_never_settles():
    def restless(ids):
        """The position prefers token 1 where it holds 0, and 0 where it holds anything else."""
        return always([(0.1, 0.9, 0) if token == 0 else (0.9, 0.1, 0) for token in ids[0]])(ids)

    tokens, calls, reveals, edits = llada21_edit(restless, masks(2), MASK, 0.7, 0.5, max_post_steps=4)
    assert (calls, reveals) == (5, [{0, 1}, set(), set(), set(), set()])
    assert edits == [set()] + [{0, 1}] * 4
    assert tokens.tolist() == [0, 0]
    # a block behind it is not touched before its turn, nor is a finished one afterwards
    calls, reveals = llada21_edit(restless, masks(2), MASK, 0.7, 0.5, block_length=1, max_post_steps=1)[1:3]
    assert (calls, reveals) == (4, [{0}, set(), {1}, set()])


def test_remdm_sigma_by_hand():
    assert remdm_sigma("cap", 0.75, 0.5, 0.3) == 0.3
    assert remdm_sigma("cap", 0.75, 0.5, 0.9) == 0.5
    assert remdm_sigma("rescale", 0.75, 0.5, 0.3) == pytest.approx(0.15)
    assert remdm_sigma("rescale", 0.25, 0.2, 0.3) == 0.3  # (1 - .25) / .2 is more than one
    assert remdm_sigma("cap", 1.0, 0.9, 0.3) == 0
    assert remdm_sigma("cap", 0.1, 0.0, 0.3) == 0.3
    loop = {"t_on": 0.55, "t_off": 0.05}
    assert remdm_sigma("loop", 0.9, 0.9, 0.02, t=0.3, **loop) == 0.02
    assert remdm_sigma("loop", 0.9, 0.9, 0.02, t=0.55, **loop) == 0.02
    assert remdm_sigma("loop", 0.9, 0.85, 0.02, t=0.6, **loop) == 0
    assert remdm_sigma("loop", 0.95, 0.9, 0.02, t=0.05, **loop) == 0
    assert [remdm_loop_alpha(t, **loop, alpha_on=0.9) for t in (1, 0.55, 0.3, 0.05, 0)] == [0, 0.9, 0.9, 0.9, 1]
    assert remdm_loop_alpha(0.775, **loop, alpha_on=0.9) == pytest.approx(0.45)


def test_remdm_step_by_hand():
    p_theta = np.array([[0.5, 0.25, 0.25, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    law = remdm_step_law(p_theta, [MASK, 1, 2], MASK, alpha_s=0.75, alpha_t=0.5, sigma=0.2, given=(2,))
    # (.75 - .8 x .5) / .5 = .7 and (1 - .75 - .2 x .5) / .5 = .3
    np.testing.assert_allclose(law, [[0.35, 0.175, 0.175, 0.3], [0, 0.8, 0, 0.2], [0, 0, 1, 0]], atol=1e-15)
    with pytest.raises(ValueError, match="sigma_max"):
        remdm_step_law(p_theta, [MASK, 1, 2], MASK, alpha_s=0.75, alpha_t=0.5, sigma=0.6)


JOINT = exact.random_joint(2)
TABLE = exact.perturbed(exact.marginals(JOINT), seed=3)
CLOCK = (1, 0.8, 0.5, 0.3, 0.02, 0)  # t, with alpha(t) = 1 - t


def remdm_laws(kind, eta, table=TABLE, **options):
    """The times' alpha and the laws of the chain."""
    if kind == "loop":
        loop = {"t_on": 0.5, "t_off": 0.05}
        alphas = [remdm_loop_alpha(t, **loop, alpha_on=0.8) for t in CLOCK]
    else:
        loop = {}
        alphas = [1 - t for t in CLOCK]
    steps = zip(CLOCK, alphas, alphas[1:], strict=False)
    sigmas = [remdm_sigma(kind, alpha_s, alpha_t, eta, t=t, **loop) for t, alpha_t, alpha_s in steps]
    return alphas, sigmas, remdm_chain_law(table, alphas, sigmas, **options)


@pytest.mark.parametrize(("kind", "eta"), [("cap", 0.2), ("cap", 1.0), ("rescale", 0.4), ("loop", 0.1)])
def test_remdm_keeps_the_law_of_the_masks(kind, eta):
    """Every position is a mask with 1 - alpha at every time, independently of the others, whatever the denoiser."""
    alphas, sigmas, laws = remdm_laws(kind, eta)
    assert max(sigmas) > 0
    hidden = STATES == MASK
    for alpha, law in zip(alphas, laws, strict=True):
        for pattern in np.unique(hidden, axis=0):
            expected = (1 - alpha) ** pattern.sum() * alpha ** (L - pattern.sum())
            assert law[(hidden == pattern).all(-1)].sum() == pytest.approx(expected, abs=1e-12)


def test_remdm_keeps_the_marginals_of_the_forward_process_given_the_text():
    """A denoiser that knows the text: q(z_t | x) is the forward process's, remasked or not."""
    text = np.zeros(len(SEQUENCES))
    text[37] = 1
    knows = np.zeros((len(STATES), L, 3))
    knows[:, np.arange(L), SEQUENCES[37]] = 1
    alphas, _, laws = remdm_laws("rescale", 0.7, table=knows)
    for alpha, law in zip(alphas, laws, strict=True):
        np.testing.assert_allclose(law, forward_law(text, alpha), atol=1e-12)


def test_remdm_without_remasking_is_the_ancestral_chain():
    steps = 5
    products = np.stack([exact.product_law(TABLE, s) for s in range(len(STATES))])
    ancestral = exact.chain_law(products, steps)
    alphas = [n / steps for n in range(steps + 1)]
    law = remdm_chain_law(TABLE, alphas, [0.0] * steps)[-1]
    full = exact.state_index(SEQUENCES)
    np.testing.assert_allclose(law[full], ancestral, atol=1e-12)
    # and with remasking it is another one
    again = remdm_chain_law(TABLE, alphas, [0.0, 0.4, 0.4, 0.25, 0])[-1]
    assert np.abs(again - law).sum() > 0.01


def test_remdm_keeps_a_prompt():
    start = (2, MASK, MASK, 0)
    law = remdm_laws("cap", 0.3, start=start, given=(0, 3))[2][-1]
    kept = (STATES[:, 0] == 2) & (STATES[:, 3] == 0)
    assert law[kept].sum() == pytest.approx(1, abs=1e-12)
    assert remdm_laws("cap", 0.3, start=start)[2][2][kept].sum() < 0.9


PRODUCTS = np.stack([exact.product_law(exact.marginals(JOINT), s) for s in range(len(STATES))])


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("masked_again", [1, 2, 3, 4])
def test_gibbs_keeps_the_law_of_a_consistent_denoiser(masked_again, alpha):
    """One position at a time by its marginals, several by their joint conditional; full texts and texts with masks."""
    law = forward_law(JOINT, alpha)
    transition = gibbs_law(exact_conditionals(JOINT), masked_again)
    np.testing.assert_allclose(transition.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(law @ transition, law, atol=1e-12)

    by_marginals = law @ gibbs_law(PRODUCTS, masked_again)
    if masked_again == 1:
        np.testing.assert_allclose(by_marginals, law, atol=1e-12)
    else:
        assert np.abs(by_marginals - law).sum() > 0.01


def test_gibbs_moves_what_is_free_and_nothing_else():
    state = np.array([2, 0, MASK, 1])
    row = gibbs_law(PRODUCTS, 1, given=(3,))[exact.state_index(state)]
    reached = STATES[row > 0]
    assert (reached[:, 2] == MASK).all() and (reached[:, 3] == 1).all()
    assert ((reached != state).sum(-1) <= 1).all()
    # half of the scans ask position 0, and p(x_0 = v | rest) is in the table
    table = exact.marginals(JOINT)[exact.state_index(np.array([MASK, 0, MASK, 1]))]
    for token in (0, 1):
        moved = exact.state_index(np.array([token, 0, MASK, 1]))
        assert row[moved] == pytest.approx(table[0, token] / 2, abs=1e-12)
    # repeated sweeps forget where they began
    full = exact.state_index(SEQUENCES)
    sweeps = np.linalg.matrix_power(gibbs_law(PRODUCTS, 1)[np.ix_(full, full)], 400)
    np.testing.assert_allclose(sweeps, np.broadcast_to(JOINT, sweeps.shape), atol=1e-6)
