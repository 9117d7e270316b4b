"""Published samplers that look back or wait: KLASS, LLaDA 2 and the edits of LLaDA 2.1, by hand-computed examples."""

import math

import published_samplers
import pytest
import torch
from exact import MASK
from published_samplers import klass, llada2_threshold, llada21_edit
from scripted_networks import always, in_turn, masks, sure


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
