"""The second writing of the published loops (`tests/support/published_samplers.py`).

The examples are computed by hand.
"""

import ast
import inspect
import itertools

import published_samplers
import pytest
import torch
from exact import MASK
from published_samplers import (
    dilated,
    dream,
    entropy_bounded,
    fast_dllm_factor,
    fast_dllm_threshold,
    klass,
    llada2_threshold,
    llada21_edit,
    llada_low_confidence,
    spaced,
)
from scripted_networks import X, Y, Z, always, masks, sure


def random_network(seed=0, length=12, vocabulary=6):
    """Logits that are a random function of all tokens, and the id of its mask token."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(
        length,
        vocabulary,
        length * vocabulary,
        generator=generator,
        dtype=torch.float64,
    )

    def logits_of(ids):
        one_hot = torch.nn.functional.one_hot(ids[0], vocabulary).double()  # (L, V)
        return (weights @ one_hot.flatten())[None]

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
    "klass": (
        klass,
        {"confidence_threshold": 0.6, "kl_threshold": 0.5, "history": 1, "steps": 4},
    ),
    "llada2": (llada2_threshold, {"threshold": 0.95, "steps": 3, "block_length": 4}),
    "llada2, even": (
        llada2_threshold,
        {"threshold": 0.95, "steps": 3, "block_length": 5, "share": "even"},
    ),
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

    every_reveal = sorted(itertools.chain(*reveals))
    assert every_reveal == torch.nonzero(ids == mask).flatten().tolist()

    # What a call revealed was masked before it and is visible at the next.
    # It holds the likeliest token other than the mask.
    for n, revealed in enumerate(reveals):
        noisy = seen[n][0]
        after = seen[n + 1][0] if n + 1 < calls else tokens
        best = logits_of(seen[n])[0, :, :mask].argmax(-1)
        for i in revealed:
            assert noisy[i] == mask
            assert after[i] == best[i]

        if name != "edit":
            rest = [i for i in range(12) if i not in revealed]
            assert torch.equal(after[rest], noisy[rest])


def test_the_second_writing_knows_nothing_of_the_package():
    tree = ast.parse(inspect.getsource(published_samplers))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)

    assert modules == {"itertools", "math", "numpy", "torch", "exact"}


def test_llada_gives_the_remainder_to_the_first_steps():
    network = always(sure(0.5, 0.9, 0.7, 0.8))
    tokens, calls, reveals = llada_low_confidence(network, masks(4), MASK, steps=3)
    assert calls == 3
    assert reveals == [{1, 3}, {2}, {0}]
    assert tokens.tolist() == [0, 0, 0, 0]

    # more steps than masks: the last ones reveal nothing and are called all the same
    network = always(sure(0.5, 0.9))
    _, calls, reveals = llada_low_confidence(network, masks(2), MASK, steps=4)
    assert calls == 4
    assert reveals == [{1}, {0}, set(), set()]


def test_llada_fills_a_block_before_it_looks_at_the_next():
    network = always(sure(0.4, 0.5, 0.6, 0.7, 0.9, 0.8))
    _, calls, reveals = llada_low_confidence(network, masks(6), MASK, steps=4, block_length=3)
    assert calls == 4
    assert reveals == [{2, 1}, {0}, {4, 5}, {3}]

    # blocks are counted from the end of the prompt
    ids = torch.tensor([0, 1, MASK, MASK, MASK, MASK])
    _, calls, reveals = llada_low_confidence(
        network,
        ids,
        MASK,
        steps=4,
        block_length=2,
        gen_start=2,
    )
    assert calls == 4
    assert reveals == [{3}, {2}, {4}, {5}]

    with pytest.raises(ValueError, match="multiple of the number of blocks, 2"):
        llada_low_confidence(network, masks(6), MASK, steps=3, block_length=3)
    with pytest.raises(ValueError, match="masks before gen_start=2"):
        llada_low_confidence(network, masks(6), MASK, steps=2, gen_start=2)


def test_dream_counts_from_its_times():
    """8 masks, 4 steps: 8 x .24975 = 1.998, 7 x .3329 = 2.33, 5 x .4990 = 2.495, then the rest."""
    network = always(sure(0.41, 0.42, 0.43, 0.44, 0.45, 0.46, 0.47, 0.48))
    _, calls, reveals = dream(network, masks(8), MASK, steps=4, alg="maskgit_plus")
    assert calls == 4
    assert reveals == [{7}, {6, 5}, {4, 3}, {2, 1, 0}]

    # 2 masks: 2 x .24975, 2 x .3329, 2 x .4990 are all below one
    network = always(sure(0.41, 0.42))
    _, calls, reveals = dream(network, masks(2), MASK, steps=4, alg="entropy")
    assert calls == 4
    assert reveals == [set(), set(), set(), {0, 1}]


def test_dream_in_even_shares_stops_when_nothing_is_masked():
    network = always(sure(0.41, 0.42, 0.43, 0.44, 0.45, 0.46, 0.47))
    options = {"alg": "topk_margin", "share": "even"}

    _, calls, reveals = dream(network, masks(7), MASK, steps=3, **options)
    assert calls == 3
    assert reveals == [{6, 5, 4}, {3, 2}, {1, 0}]

    _, calls, reveals = dream(network, masks(7), MASK, steps=9, **options)
    assert calls == 7
    assert reveals == [{6}, {5}, {4}, {3}, {2}, {1}, {0}]


@pytest.mark.parametrize(
    ("alg", "order"),
    [("maskgit_plus", [1, 0, 2]), ("topk_margin", [0, 1, 2]), ("entropy", [2, 1, 0])],
)
def test_dream_orders_by_its_three_scores(alg, order):
    network = always([Y, X, Z])
    tokens, _, reveals = dream(network, masks(3), MASK, steps=3, alg=alg, share="even")
    assert reveals == [{i} for i in order]
    assert tokens.tolist() == [1, 0, 2]


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_ties_go_to_the_lowest_index(alg):
    equal_rows = always([(0.5, 0.25, 0.25)] * 3)
    _, _, reveals = dream(equal_rows, masks(3), MASK, steps=3, alg=alg, share="even")
    assert reveals == [{0}, {1}, {2}]

    equal_tokens = always([(0.25, 0.375, 0.375)])
    tokens, _, _ = dream(equal_tokens, masks(1), MASK, steps=1, alg=alg)
    assert tokens.tolist() == [1]


def test_threshold_takes_all_that_are_sure_and_always_the_best():
    network = always(sure(0.95, 0.92, 0.5, 0.85))
    _, calls, reveals = fast_dllm_threshold(network, masks(4), MASK, threshold=0.9)
    assert calls == 3
    assert reveals == [{0, 1}, {3}, {2}]

    _, calls, reveals = fast_dllm_threshold(
        network,
        masks(4),
        MASK,
        threshold=0.9,
        block_length=3,
    )
    assert calls == 3
    assert reveals == [{0, 1}, {2}, {3}]

    # A known position is never revealed, however sure it is
    ids = torch.tensor([MASK, 0, MASK, MASK])
    _, _, reveals = fast_dllm_threshold(network, ids, MASK, threshold=0.9)
    assert reveals == [{0}, {3}, {2}]

    # one half is exact in floats: the threshold itself counts
    halves = always([(0.5, 0.5, 0)] * 2)
    _, _, reveals = fast_dllm_threshold(halves, masks(2), MASK, threshold=0.5)
    assert reveals == [{0, 1}]


def test_factor_compares_the_least_sure_with_the_number():
    """2 x .01 = .02, 3 x .1 = .3, 4 x .3 = 1.2, then 2 x .3 = .6 and 2 x .4 = .8.

    One position alone may always be revealed.
    """
    network = always(sure(0.7, 0.99, 0.6, 0.9))
    expected = {
        0.5: [{1, 3}, {0}, {2}],
        0.25: [{1}, {3}, {0}, {2}],
        1.21: [{1, 3, 0}, {2}],
    }
    for factor, reveals in expected.items():
        _, calls, revealed = fast_dllm_factor(network, masks(4), MASK, factor=factor)
        assert calls == len(reveals)
        assert revealed == reveals

    _, calls, reveals = fast_dllm_factor(network, masks(4), MASK, factor=0.5, block_length=2)
    assert calls == 4
    assert reveals == [{1}, {0}, {3}, {2}]


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
    network = always([Y, X, Z])
    _, calls, revealed = entropy_bounded(network, masks(3), MASK, gamma=gamma, score=score)
    assert calls == len(reveals)
    assert revealed == reveals


def test_dilated_reads_the_bits_backwards():
    network = always(sure(*[0.5] * 8))
    _, calls, reveals = dilated(network, masks(8), MASK, steps=4)
    assert calls == 4
    assert reveals == [{0, 4}, {2, 6}, {1, 5}, {3, 7}]

    # an offset counts modulo 8
    for offset in (1, 9):
        _, _, reveals = dilated(network, masks(8), MASK, steps=4, offset=offset)
        assert reveals == [{7, 3}, {1, 5}, {0, 4}, {2, 6}]

    # five positions: ranks 0, 4, 2, 6, 1 of eight
    _, _, reveals = dilated(always(sure(*[0.5] * 5)), masks(5), MASK, steps=5)
    assert reveals == [{0}, {4}, {2}, {1}, {3}]

    # the index is that of the row, not that among the masks
    ids = torch.tensor([0, MASK, 0, MASK, MASK, 0, 0, MASK])
    _, _, reveals = dilated(network, ids, MASK, steps=2)
    assert reveals == [{4, 1}, {3, 7}]


def test_spaced_keeps_its_distance_within_a_step():
    eight = always(sure(*[0.5] * 8))
    rising = list(range(8))
    _, calls, reveals = spaced(eight, masks(8), MASK, steps=4, distance=4, score=rising)
    assert calls == 4
    assert reveals == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]

    _, _, reveals = spaced(eight, masks(8), MASK, steps=8, distance=4, score=rising)
    assert reveals == [{i} for i in range(8)]

    # 0 and 4, then nothing is 4 away from both: 7 is 3 away, then 2 is
    _, _, reveals = spaced(eight, masks(8), MASK, steps=2, distance=4, score=rising)
    assert reveals == [{0, 4, 7, 2}, {1, 5, 3, 6}]

    # one step takes all, whatever their distance
    six = always(sure(*[0.5] * 6))
    scores = [5, 1, 4, 0, 3, 2]
    _, _, reveals = spaced(six, masks(6), MASK, steps=1, distance=5, score=scores)
    assert reveals == [{0, 1, 2, 3, 4, 5}]

    # K = 3 of five masks: 3, then no mask is 5 away: 0 is 3 away from it, 5 is 2
    ids = torch.tensor([MASK, MASK, 0, MASK, MASK, MASK])
    _, _, reveals = spaced(six, ids, MASK, steps=2, distance=5, score=scores)
    assert reveals == [{3, 0, 5}, {1, 4}]


def test_without_a_distance_the_positions_of_a_step_fill_the_span():
    network = always(sure(*[0.5] * 8))
    rising = list(range(8))

    # d = ceil(8 / 2)
    _, _, reveals = spaced(network, masks(8), MASK, steps=4, score=rising)
    assert reveals == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]

    # d = ceil(6 / 2) for masks at 1, ..., 6
    ids = torch.tensor([0, MASK, MASK, MASK, MASK, MASK, MASK, 0])
    _, _, reveals = spaced(network, ids, MASK, steps=3, score=rising)
    assert reveals == [{1, 4}, {2, 5}, {3, 6}]


@pytest.mark.parametrize(("score", "first"), [("confidence", 2), ("margin", 0), ("entropy", 4)])
def test_spaced_goes_by_its_score(score, first):
    """The first is Y, X or Z. The second of its step is at least three positions away."""
    far = (0.4, 0.35, 0.25)
    network = always([Y, far, X, far, Z, far])
    _, _, reveals = spaced(network, masks(6), MASK, steps=6, distance=3, score=score)
    assert reveals[0] == {first}

    _, _, reveals = spaced(network, masks(6), MASK, steps=3, distance=3, score=score)
    assert first in reveals[0]
    others = reveals[0] - {first}
    assert min(abs(i - first) for i in others) >= 3
