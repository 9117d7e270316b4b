"""Published samplers that look back or wait: KLASS, LLaDA 2 and the edits of LLaDA 2.1.

The examples are computed by hand.
"""

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
    options = {
        "confidence_threshold": 0.6,
        "kl_threshold": 0.01,
        "steps": 4,
    }

    # call 1: no past, so the surest (2)
    # call 2: 0, 1 and 3 stand still, 3 is not sure
    # call 3: nothing is sure
    _, _, reveals = klass(in_turn(network), masks(4), MASK, history=1, **options)
    assert reveals == [{2}, {0, 1}, {3}]

    # two calls in a row: call 2 is too early (one more by confidence), call 3 not
    _, _, reveals = klass(in_turn(network), masks(4), MASK, history=2, **options)
    assert reveals == [{2}, {1}, {0}, {3}]

    # what moves starts to count again: .5 -> .9 has KL .9 log(.9 / .5) + .1 log(.1 / .5) = .368
    moving = [
        sure(0.5, 0.8),
        sure(0.9, 0.8),
        sure(0.9, 0.8),
    ]
    ids = torch.tensor([MASK, 0])
    _, _, reveals = klass(in_turn(moving), ids, MASK, history=1, **options)
    assert reveals == [{0}]

    options["steps"] = 8
    wide = [rows + sure(0.55, 0.55, 0.55) for rows in moving]
    ids = torch.tensor([MASK, 0, MASK, MASK, MASK])
    _, _, reveals = klass(in_turn(wide), ids, MASK, history=1, **options)
    assert reveals[:3] == [{2}, {0}, {3}]

    # a threshold above .368 does not see it move
    options["kl_threshold"] = 0.4
    twice = [moving[0] * 2, moving[1] * 2]
    _, _, reveals = klass(in_turn(twice), masks(4), MASK, history=1, **options)
    assert reveals == [{1}, {0, 2, 3}]


def test_klass_measures_from_the_new_to_the_old():
    """KL(new || old) = log 2 = .693, KL(old || new) is infinite."""
    restless = (0.9, 0.1, 0)
    unsure = (0.4, 0.3, 0.3)
    tables = [
        [(0.5, 0.5, 0), restless, unsure],
        [(1, 0, 0), restless, unsure],
    ]
    _, _, reveals = klass(
        in_turn(tables),
        masks(3),
        MASK,
        confidence_threshold=0.95,
        kl_threshold=0.7,
        history=1,
        steps=3,
    )
    assert reveals == [{1}, {0}, {2}]

    assert published_samplers.divergence((1, 0), (0.5, 0.5)) == pytest.approx(math.log(2))
    assert published_samplers.divergence((0.5, 0.5), (1, 0)) == math.inf


def test_klass_counts_calls_in_a_row():
    """Position 0 stands still, moves and stands still twice.

    The others move always and are revealed by their confidence.
    """
    left = (0.7, 0.2, 0.1)
    right = (0.2, 0.7, 0.1)
    restless = [(0.95, 0.05, 0), (0.05, 0.95, 0)]
    path = [left, left, right, right, right, right]

    tables = [[row] + [restless[n % 2]] * 5 for n, row in enumerate(path)]
    _, _, reveals = klass(
        in_turn(tables),
        masks(6),
        MASK,
        confidence_threshold=0.6,
        kl_threshold=0.01,
        history=2,
        steps=8,
    )
    assert reveals == [{1}, {2}, {3}, {4}, {0}, {5}]


def test_klass_fills_the_row_in_its_last_step():
    """Position 3 alone is stable and sure then."""
    _, _, reveals = klass(
        always(sure(0.9, 0.9, 0.8, 0.8, 0.5, 0.5)),
        masks(6),
        MASK,
        confidence_threshold=0.6,
        kl_threshold=0.01,
        history=1,
        steps=2,
    )
    assert reveals == [{0, 1, 2}, {3, 4, 5}]


def test_llada2_takes_its_share_where_too_few_are_sure():
    network = always(sure(0.5, 0.97, 0.96, 0.6, 0.7, 0.8))
    options = {"threshold": 0.95, "steps": 3}

    # K = 2, 2, 2: two are above, then none and the two best
    _, calls, reveals = llada2_threshold(network, masks(6), MASK, **options)
    assert calls == 3
    assert reveals == [{1, 2}, {5, 4}, {3, 0}]

    # K = 1 of a block of three: two are above, then one alone
    _, _, reveals = llada2_threshold(network, masks(6), MASK, block_length=3, **options)
    assert reveals == [{1, 2}, {0}, {5}, {4}, {3}]

    # one is above where K = 2: the two best
    one_sure = always(sure(0.5, 0.97, 0.9, 0.6))
    _, _, reveals = llada2_threshold(one_sure, masks(4), MASK, threshold=0.95, steps=2)
    assert reveals == [{1, 2}, {3, 0}]

    # K comes from the length of the block (3, 3), or from the masks that are left (2, then 2)
    ids = torch.tensor([MASK, 0, 0, MASK, MASK, MASK])
    options = {"threshold": 0.95, "steps": 2}
    _, _, reveals = llada2_threshold(network, ids, MASK, **options)
    assert reveals == [{5, 4, 3}, {0}]
    _, _, reveals = llada2_threshold(network, ids, MASK, share="even", **options)
    assert reveals == [{5, 4}, {3, 0}]

    # above means above: one half is exact
    halves = always([(0.5, 0.5, 0)] * 4)
    _, _, reveals = llada2_threshold(halves, masks(4), MASK, threshold=0.5, steps=4)
    assert reveals == [{0}, {1}, {2}, {3}]
    _, _, reveals = llada2_threshold(halves, masks(4), MASK, threshold=0.49, steps=4)
    assert reveals == [{0, 1, 2, 3}]


def test_edit_replaces_what_the_model_now_rejects():
    first = [(0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.1, 0.9, 0), (0.2, 0.2, 0.6)]
    second = [(0.05, 0.05, 0.9), (0.5, 0.4, 0.1), (0.9, 0.1, 0), (0.3, 0.3, 0.4)]
    ids = torch.tensor([MASK, MASK, 0, MASK])  # position 2 is given

    # call 1 writes 0 (.8)
    # call 2 replaces it (.9 > .85) and writes the best mask, 1 (.5)
    # calls 3 and 4 end it
    tokens, calls, reveals, edits = llada21_edit(
        in_turn([first, second]),
        ids,
        MASK,
        threshold=0.7,
        editing_threshold=0.85,
    )
    assert tokens.tolist() == [2, 0, 0, 2]
    assert calls == 4
    assert reveals == [{0}, {1}, {3}, set()]
    assert edits == [set(), {0}, set(), set()]

    # a threshold that nothing passes leaves the first token
    tokens, *_ = llada21_edit(
        in_turn([first, second]),
        ids,
        MASK,
        threshold=0.7,
        editing_threshold=0.95,
    )
    assert tokens.tolist() == [0, 0, 0, 2]

    # what is visible may be edited where it is not given
    tokens, *_ = llada21_edit(
        always(first),
        ids,
        MASK,
        threshold=0.7,
        editing_threshold=0.85,
        given=torch.zeros(4, dtype=torch.bool),
    )
    assert tokens.tolist() == [0, 0, 1, 2]


def test_edit_ends_a_block_that_never_settles():
    def restless(ids):
        """A position prefers token 1 where it holds 0, and 0 where it holds anything else."""
        rows = [(0.1, 0.9, 0) if token == 0 else (0.9, 0.1, 0) for token in ids[0]]
        return always(rows)(ids)

    tokens, calls, reveals, edits = llada21_edit(
        restless,
        masks(2),
        MASK,
        threshold=0.7,
        editing_threshold=0.5,
        max_post_steps=4,
    )
    assert tokens.tolist() == [0, 0]
    assert calls == 5
    assert reveals == [{0, 1}, set(), set(), set(), set()]
    assert edits == [set()] + [{0, 1}] * 4

    # a later block is not touched before its turn, nor a finished one afterwards
    _, calls, reveals, _ = llada21_edit(
        restless,
        masks(2),
        MASK,
        threshold=0.7,
        editing_threshold=0.5,
        block_length=1,
        max_post_steps=1,
    )
    assert calls == 4
    assert reveals == [{0}, set(), {1}, set()]
