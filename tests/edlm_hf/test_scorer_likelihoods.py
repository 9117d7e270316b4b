"""Log-likelihoods for an evaluation harness, against enumeration and `generate()`."""

import itertools

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, L, TableCausalLM, V, random_joint, state_index
from scorers import LENGTH, TABLE, TEXTS, exact_scorer, tiny_scorer, varied_scorer

from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound


def conditional_bound(text: np.ndarray, visible: int, steps: int | None) -> float:
    """The bound of the last tokens of a text (L,) given the first `visible`, in nats.

    All sets of masks are enumerated. Without `steps`, time is continuous.
    """
    free = L - visible
    bound = 0.0

    for chosen in itertools.product([False, True], repeat=free):
        n = sum(chosen)
        if n == 0:
            continue

        masked = np.array([False] * visible + list(chosen))
        state = state_index(np.where(masked, MASK, text))
        nats = -np.log(TABLE[state][masked, text[masked]]).sum()

        if steps is None:
            # int_0^1 t^(n-1) (1-t)^(free-n) dt
            binomial = np.prod([(free - j) / (j + 1) for j in range(n)])
            weight = 1 / (n * binomial)
        else:
            # sum_s (1 / s) t_s^n (1 - t_s)^(free-n), t_s = s / T
            weight = 0
            for s in range(1, steps + 1):
                weight += (s / steps) ** n * (1 - s / steps) ** (free - n) / s

        bound += weight * nats

    return bound


def splits(visible: int) -> list[tuple[str, str]]:
    """Every text of the test-bed as a context of `visible` letters and its continuation."""
    return [(text[:visible], text[visible:]) for text in TEXTS]


@pytest.mark.parametrize(("bound", "steps"), [("nelbo", None), ("discrete", 3)])
@pytest.mark.parametrize("visible", [0, 1, 2, 3])
def test_log_likelihoods_are_minus_the_enumerated_bound_given_the_visible_context(
    bound,
    steps,
    visible,
):
    scorer = exact_scorer(bound=bound, num_samples=64, num_steps=steps or 1)
    log_likelihoods = [value for value, _ in scorer.loglikelihood(splits(visible))]
    truth = np.array([conditional_bound(row, visible, steps) for row in SEQUENCES])
    estimate = scorer.estimates["loglikelihood"]
    error = estimate.standard_error * estimate.num_tokens

    assert abs(-sum(log_likelihoods) - truth.sum()) < 4 * error + 1e-9
    assert estimate.num_tokens == 81 * (L - visible)
    assert estimate.num_samples == 81 * 64

    # One mask leaves nothing to chance but t, which the denoiser does not know
    if visible == L - 1 and bound == "nelbo":
        assert np.abs(np.array(log_likelihoods) + truth).max() < 1e-9


def test_every_single_log_likelihood_has_its_enumerated_value():
    runs = []
    for seed in range(16):
        scorer = exact_scorer(num_samples=32, seed=seed)
        runs.append([value for value, _ in scorer.loglikelihood(splits(2))])

    truth = np.array([conditional_bound(row, 2, None) for row in SEQUENCES])
    means = np.mean(runs, axis=0)
    errors = np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
    assert (np.abs(means + truth) < 4.5 * errors + 1e-9).all()  # 81 tests at once
    assert errors.max() < 0.3


def test_the_bound_of_the_sampler_takes_the_energy_and_the_options():
    energy = TableCausalLM(random_joint())
    options = {"num_steps": 3, "num_candidates": 4, "inner_copies": 2}
    scorer = exact_scorer(energy, bound="sampler", num_samples=4, seed=5, **options)
    ((log_likelihood, _),) = scorer.loglikelihood([("a", "bca")])

    scored = [[False, True, True, True]]
    expected = sampler_bound(
        scorer.model,
        [[0, 1, 2, 0]],
        scored=scored,
        num_samples=4,
        seed=5,
        **options,
    )
    assert log_likelihood == pytest.approx(-expected.sequence_nats[0], abs=1e-9)

    without_energy = discrete_nelbo(
        scorer.model,
        [[0, 1, 2, 0]],
        scored=scored,
        num_steps=3,
        num_samples=4,
        seed=5,
    )
    assert log_likelihood != pytest.approx(-without_energy.sequence_nats[0], abs=1e-3)


def test_neither_order_nor_repetition_nor_batch_size_changes_a_log_likelihood():
    pairs = [("ab", "c"), ("", "abcd"), ("the cat", " sat"), ("the cat ", "sat"), ("z", "zz")]
    found = tiny_scorer(num_samples=4).loglikelihood(pairs)
    assert found[2] == found[3]  # the space belongs to the continuation

    again = tiny_scorer(num_samples=4).loglikelihood(pairs[::-1] + pairs)
    assert again == found[::-1] + found

    log_likelihoods, greedy = zip(*found, strict=True)
    other = tiny_scorer(num_samples=4, batch_size=3).loglikelihood(pairs)
    other_log_likelihoods, other_greedy = zip(*other, strict=True)
    np.testing.assert_allclose(other_log_likelihoods, log_likelihoods, atol=1e-5)
    assert other_greedy == greedy


def test_seeds_differ_within_the_noise():
    log_likelihoods = []
    for seed in (0, 1):
        scorer = tiny_scorer(seed=seed, num_samples=64)
        ((log_likelihood, _),) = scorer.loglikelihood([("ab", "cdef")])
        log_likelihoods.append(log_likelihood)

    first, second = log_likelihoods
    assert first != second
    assert first == pytest.approx(second, rel=0.2)


def test_a_text_begins_with_the_start_token_once():
    scorer = tiny_scorer()
    start = scorer.tokenizer.bos_token_id
    (window,) = scorer.windows(*scorer.encode_pair("", "ab"))
    assert window == ((start, 1, 2), 1)
    assert scorer.windows(*scorer.encode_pair("<s>a", "b")) == [((start, 1, 2), 2)]

    # The bound does not count the start token either
    (rolled,) = scorer.rolling(["ab"])
    ((log_likelihood, _),) = scorer.loglikelihood([("", "ab")])
    expected = nelbo(scorer.model, [[start, 1, 2]], num_samples=2)
    assert rolled == log_likelihood
    assert log_likelihood == pytest.approx(-expected.sequence_nats[0], abs=1e-5)

    without_start = tiny_scorer(start_token=False)
    assert without_start.windows([], [1, 2]) == [((1, 2), 0)]


def test_a_long_context_is_cut_on_the_left():
    context = "abcdefghijklmnop"
    rest = "xyz"

    scorer = tiny_scorer(start_token=False)
    seen = context[-(LENGTH - 3) :]
    assert scorer.loglikelihood([(context, rest)]) == scorer.loglikelihood([(seen, rest)])

    # the start token and three letters leave two of six columns
    scorer = tiny_scorer(max_length=6)
    seen = context[-2:]
    assert scorer.loglikelihood([(context, rest)]) == scorer.loglikelihood([(seen, rest)])


@pytest.mark.parametrize("max_length", [3, 5, 12])
@pytest.mark.parametrize("length", [1, 4, 11, 12, 30])
def test_every_token_of_a_long_text_counts_once_behind_at_least_one_token(max_length, length):
    scorer = tiny_scorer(max_length=max_length)
    text = list(range(length))
    covered = 0

    for number, window in enumerate(scorer.windows([], text)):
        assert window.ids[0] == scorer.tokenizer.bos_token_id
        assert len(window.ids) <= max_length

        new = window.ids[window.first :]
        assert new == tuple(text[covered : covered + len(new)])

        seen = window.ids[1 : window.first]
        assert seen == tuple(text[covered - len(seen) : covered])
        assert seen or number == 0
        covered += len(new)

    assert covered == length


def test_a_continuation_longer_than_the_model_is_scored_in_windows():
    scorer = tiny_scorer()
    text = "the quick brown fox jumps"
    windows = scorer.windows([25], scorer.encode(text))
    assert len(windows) == 3

    ids = [window.ids for window in windows]
    scored = [[i >= window.first for i in range(len(window.ids))] for window in windows]
    expected = nelbo(scorer.model, ids, scored=scored, num_samples=256)

    ((log_likelihood, _),) = tiny_scorer(num_samples=256).loglikelihood([("zzzzy", text)])
    tolerance = 6 * expected.standard_error * expected.num_tokens
    assert log_likelihood == pytest.approx(-sum(expected.sequence_nats), abs=tolerance)


def test_nothing_has_probability_one():
    scorer = tiny_scorer()
    assert scorer.loglikelihood([("abc", "")]) == [(0, True)]
    assert scorer.rolling(["", "a"])[0] == 0

    assert scorer.loglikelihood([]) == []
    assert scorer.rolling([]) == []
    assert scorer.generate_until([]) == []


@pytest.mark.parametrize("visible", [0, 2, 3])
def test_greedy_continuations_are_those_of_generate(visible):
    scorer = exact_scorer(num_samples=2)
    ids = torch.tensor(SEQUENCES)
    prompts = torch.where(torch.arange(L) < visible, ids, MASK)
    rows = scorer.model.generate(prompts, do_sample=False, sampler="first_hitting")

    greedy = [flag for _, flag in scorer.loglikelihood(splits(visible))]
    assert greedy == (rows == ids).all(-1).tolist()
    assert sum(greedy) == V**visible


def test_rows_of_unequal_length_have_the_greedy_continuation_of_a_row_alone():
    scorer = varied_scorer(max_gen_toks=3)
    prompts = ["", "abc", "hello"]
    requests = [(prompt, {"sampler": "first_hitting"}) for prompt in prompts]
    texts = scorer.generate_until(requests)
    assert len(set(texts)) == 3
    assert {len(text) for text in texts} == {3}

    pairs = list(zip(prompts, texts, strict=True))
    wrong = [(prompt, text[::-1]) for prompt, text in pairs if text != text[::-1]]
    assert wrong

    greedy = [flag for _, flag in scorer.loglikelihood(pairs + wrong)]
    assert greedy == [True] * 3 + [False] * len(wrong)


def test_a_wrong_first_token_costs_one_call():
    scorer = exact_scorer(num_samples=2)
    masks = torch.full((1, L), MASK)
    best = scorer.model.generate(masks, do_sample=False, max_denoising_steps=1)[0].tolist()

    # texts that share no token with the likeliest one
    wrong = []
    for row in SEQUENCES:
        windows = scorer.windows([], row.tolist())
        if not set(enumerate(best)) & set(enumerate(windows[0].ids)):
            wrong.append(windows)

    scorer.model.denoiser.calls = 0
    assert not any(scorer.reproduced(wrong).values())
    assert scorer.model.denoiser.calls == 1
