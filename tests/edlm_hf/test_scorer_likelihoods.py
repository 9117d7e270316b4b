"""Log-likelihoods for an evaluation harness, against enumeration and `generate()`."""

import itertools

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, L, TableCausalLM, V, random_joint, state_index
from scorers import LENGTH, TABLE, TEXTS, exact_scorer, tiny_scorer, varied_scorer

from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound


def conditional_bound(text: np.ndarray, visible: int, steps: int | None) -> float:
    """The bound of the last tokens of a text (L,) given the first `visible`, in nats, by enumeration of their masks."""
    free, bound = L - visible, 0.0
    for chosen in itertools.product([False, True], repeat=free):
        n, masked = sum(chosen), np.array([False] * visible + list(chosen))
        if n == 0:
            continue
        state = state_index(np.where(masked, MASK, text))
        nats = -np.log(TABLE[state][masked, text[masked]]).sum()

        if steps is None:  # int_0^1 t^(n-1) (1-t)^(free-n) dt
            weight = 1 / (n * np.prod([(free - j) / (j + 1) for j in range(n)]))
        else:
            weight = sum((s / steps) ** n * (1 - s / steps) ** (free - n) / s for s in range(1, steps + 1))

        bound += weight * nats

    return bound


@pytest.mark.parametrize(("bound", "steps"), [("nelbo", None), ("discrete", 3)])
@pytest.mark.parametrize("visible", [0, 1, 2, 3])
def test_log_likelihoods_are_minus_the_enumerated_bound_given_the_visible_context(
    bound,
    steps,
    visible,
):
    scorer = exact_scorer(bound=bound, num_samples=64, num_steps=steps or 1)
    found = [value for value, _ in scorer.loglikelihood([(text[:visible], text[visible:]) for text in TEXTS])]
    truth = np.array([conditional_bound(row, visible, steps) for row in SEQUENCES])
    estimate = scorer.estimates["loglikelihood"]
    error = estimate.standard_error * estimate.num_tokens

    assert abs(-sum(found) - truth.sum()) < 4 * error + 1e-9
    assert estimate.num_tokens == 81 * (L - visible) and estimate.num_samples == 81 * 64
    # One mask leaves nothing to chance but t, which the denoiser does not know
    if visible == L - 1:
        assert bound == "discrete" or np.abs(np.array(found) + truth).max() < 1e-9


def test_every_single_log_likelihood_has_its_enumerated_value():
    pairs = [(text[:2], text[2:]) for text in TEXTS]
    runs = [[value for value, _ in exact_scorer(num_samples=32, seed=seed).loglikelihood(pairs)] for seed in range(16)]
    truth = np.array([conditional_bound(row, 2, None) for row in SEQUENCES])
    errors = np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
    assert (np.abs(np.mean(runs, axis=0) + truth) < 4.5 * errors + 1e-9).all()  # 81 tests at once
    assert errors.max() < 0.3


def test_the_bound_of_the_sampler_takes_the_energy_and_the_options():
    energy, options = TableCausalLM(random_joint()), {"num_steps": 3, "num_candidates": 4, "inner_copies": 2}
    scorer = exact_scorer(energy, bound="sampler", num_samples=4, seed=5, **options)
    ((found, _),) = scorer.loglikelihood([("a", "bca")])
    scored = [[False, True, True, True]]
    expected = sampler_bound(
        scorer.model,
        [[0, 1, 2, 0]],
        scored=scored,
        num_samples=4,
        seed=5,
        **options,
    )
    assert found == pytest.approx(-expected.sequence_nats[0], abs=1e-9)

    without = discrete_nelbo(
        scorer.model,
        [[0, 1, 2, 0]],
        scored=scored,
        num_steps=3,
        num_samples=4,
        seed=5,
    )
    assert found != pytest.approx(-without.sequence_nats[0], abs=1e-3)


def test_neither_order_nor_repetition_nor_batch_size_changes_a_log_likelihood():
    pairs = [("ab", "c"), ("", "abcd"), ("the cat", " sat"), ("the cat ", "sat"), ("z", "zz")]
    found = tiny_scorer(num_samples=4).loglikelihood(pairs)
    assert found[2] == found[3]  # the space belongs to the continuation
    again = tiny_scorer(num_samples=4).loglikelihood(pairs[::-1] + pairs)
    assert again == found[::-1] + found
    other = tiny_scorer(num_samples=4, batch_size=3).loglikelihood(pairs)
    np.testing.assert_allclose([value for value, _ in other], [value for value, _ in found], atol=1e-5)
    assert [greedy for _, greedy in other] == [greedy for _, greedy in found]


def test_seeds_differ_within_the_noise():
    (one,), (two,) = (tiny_scorer(seed=seed, num_samples=64).loglikelihood([("ab", "cdef")]) for seed in (0, 1))
    assert one[0] != two[0] and one[0] == pytest.approx(two[0], rel=0.2)


def test_a_text_begins_with_the_start_token_once():
    scorer = tiny_scorer()
    start = scorer.tokenizer.bos_token_id
    (window,) = scorer.windows(*scorer.encode_pair("", "ab"))
    assert window == ((start, 1, 2), 1)
    assert scorer.windows(*scorer.encode_pair("<s>a", "b")) == [((start, 1, 2), 2)]

    (rolled,), ((found, _),) = scorer.rolling(["ab"]), scorer.loglikelihood([("", "ab")])
    # The bound does not count the start token either
    expected = nelbo(scorer.model, [[start, 1, 2]], num_samples=2)
    assert rolled == found == pytest.approx(-expected.sequence_nats[0], abs=1e-5)
    assert tiny_scorer(start_token=False).windows([], [1, 2]) == [((1, 2), 0)]


def test_a_long_context_is_cut_on_the_left():
    scorer = tiny_scorer(start_token=False)
    context, rest = "abcdefghijklmnop", "xyz"
    assert scorer.loglikelihood([(context, rest)]) == scorer.loglikelihood([(context[-(LENGTH - 3) :], rest)])
    scorer = tiny_scorer(max_length=6)
    assert scorer.loglikelihood([(context, rest)]) == scorer.loglikelihood([(context[-2:], rest)])


@pytest.mark.parametrize("max_length", [3, 5, 12])
@pytest.mark.parametrize("length", [1, 4, 11, 12, 30])
def test_every_token_of_a_long_text_counts_once_behind_at_least_one_token(max_length, length):
    scorer = tiny_scorer(max_length=max_length)
    text, covered = list(range(length)), 0
    for number, window in enumerate(scorer.windows([], text)):
        assert window.ids[0] == scorer.tokenizer.bos_token_id and len(window.ids) <= max_length
        new = window.ids[window.first :]
        assert new == tuple(text[covered : covered + len(new)])
        seen = window.ids[1 : window.first]
        assert seen == tuple(text[covered - len(seen) : covered]) and (seen or number == 0)
        covered += len(new)

    assert covered == length


def test_a_continuation_longer_than_the_model_is_scored_in_windows():
    scorer, text = tiny_scorer(), "the quick brown fox jumps"
    windows = scorer.windows([25], scorer.encode(text))
    ids, first = [window.ids for window in windows], [window.first for window in windows]
    scored = [[i >= begin for i in range(len(row))] for row, begin in zip(ids, first, strict=True)]
    expected = nelbo(scorer.model, ids, scored=scored, num_samples=256)
    ((found, _),) = tiny_scorer(num_samples=256).loglikelihood([("zzzzy", text)])
    tolerance = 6 * expected.standard_error * expected.num_tokens
    assert len(windows) == 3 and found == pytest.approx(-sum(expected.sequence_nats), abs=tolerance)


def test_nothing_has_probability_one():
    scorer = tiny_scorer()
    assert scorer.loglikelihood([("abc", "")]) == [(0, True)] and scorer.rolling(["", "a"])[0] == 0
    assert scorer.loglikelihood([]) == scorer.rolling([]) == scorer.generate_until([]) == []


@pytest.mark.parametrize("visible", [0, 2, 3])
def test_greedy_continuations_are_those_of_generate(visible):
    scorer = exact_scorer(num_samples=2)
    ids = torch.tensor(SEQUENCES)
    prompts = torch.where(torch.arange(L) < visible, ids, MASK)
    rows = scorer.model.generate(prompts, do_sample=False, sampler="first_hitting")
    found = scorer.loglikelihood([(text[:visible], text[visible:]) for text in TEXTS])
    assert [greedy for _, greedy in found] == (rows == ids).all(-1).tolist()
    assert sum(greedy for _, greedy in found) == V**visible


def test_rows_of_unequal_length_have_the_greedy_continuation_of_a_row_alone():
    scorer = varied_scorer(max_gen_toks=3)
    prompts = ["", "abc", "hello"]
    texts = scorer.generate_until([(prompt, {"sampler": "first_hitting"}) for prompt in prompts])
    pairs = list(zip(prompts, texts, strict=True))
    assert len(set(texts)) == 3 and {len(text) for text in texts} == {3}
    wrong = [(prompt, text[::-1]) for prompt, text in pairs if text != text[::-1]]
    found = [greedy for _, greedy in scorer.loglikelihood(pairs + wrong)]
    assert wrong and found == [True] * 3 + [False] * len(wrong)


def test_a_wrong_first_token_costs_one_call():
    scorer = exact_scorer(num_samples=2)
    found = [scorer.windows([], row.tolist()) for row in SEQUENCES]
    best = scorer.model.generate(torch.full((1, L), MASK), do_sample=False, max_denoising_steps=1)[0].tolist()
    wrong = [windows for windows in found if not set(enumerate(best)) & set(enumerate(windows[0].ids))]
    scorer.model.denoiser.calls = 0
    assert not any(scorer.reproduced(wrong).values()) and scorer.model.denoiser.calls == 1
