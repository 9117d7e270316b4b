"""Requests of an evaluation harness against enumeration and `generate()`, and its bridge where it is installed."""

import itertools
import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    L,
    TableCausalLM,
    TableDenoiser,
    V,
    marginals,
    perturbed,
    random_joint,
    state_index,
)
from published import randomised, tiny_causal, tiny_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound
from edlm_hf.evaluation.scorer import EDLMScorer
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 12
TABLE = perturbed(marginals(random_joint()), seed=1)
TEXTS = ["".join("abc"[token] for token in row) for row in SEQUENCES]


@cache
def letters(**special) -> PreTrainedTokenizerFast:
    """a, b, c and the mask, as in the exact test-bed, and an end-of-text "." if wanted."""
    symbols = ["a", "b", "c", "[MASK]", *special.values()]
    backend = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **special)


def exact_scorer(energy=None, **options) -> EDLMScorer:
    model = EDLMForMaskedDiffusion.from_components(TableDenoiser(TABLE), energy, mask_token_id=MASK)
    return EDLMScorer(model, letters(), **({"batch_size": 512, "max_length": L} | options))


def tiny_scorer(start_token=True, energy=False, tokenizer=None, scale=1, **options) -> EDLMScorer:
    tokenizer = tokenizer or text8_tokenizer(LENGTH, start_token=start_token)
    sizes = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "model_length": LENGTH,
    }
    sizes["mask_token_id"] = tokenizer.mask_token_id
    model = randomised(MDLMForMaskedLM(tiny_config(**sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale

    if energy:
        model = EDLMForMaskedDiffusion.from_components(model, tiny_causal(**sizes), energy_type="ar")
    return EDLMScorer(model, tokenizer, **({"num_samples": 2, "num_steps": 4} | options))


def varied_scorer(**options) -> EDLMScorer:
    """One whose greedy text is more than one letter."""
    return tiny_scorer(start_token=False, scale=3, **options)


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


# ------------------------------------------------------------------------------------------------------ log-likelihood


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


# ---------------------------------------------------------------------------------------------------------- generation


def test_text_is_that_of_generate():
    scorer = tiny_scorer()
    (found,) = scorer.generate_until(
        [
            (
                "abc",
                {"until": [], "max_gen_toks": 5, "do_sample": False, "temperature": 0},
            )
        ]
    )
    ids = torch.tensor([scorer.tokenizer.encode("abc")])
    rows = scorer.model.generate(ids, max_new_tokens=5, do_sample=False, max_denoising_steps=4)
    assert found == scorer.tokenizer.decode(rows[0, 4:], skip_special_tokens=True)


def test_greedy_text_depends_neither_on_order_nor_on_batches():
    requests = [(prompt, {"max_gen_toks": new}) for prompt in ("a", "hello", "zyx") for new in (3, 5, 20)]
    found = varied_scorer().generate_until(requests)
    assert [len(text) for text in found] == [3, 5, 20] * 3 and len(set(found)) > 6
    assert varied_scorer(batch_size=1).generate_until(requests[::-1]) == found[::-1]


def test_samples_depend_on_the_seed_and_not_on_the_order_and_equal_requests_differ():
    requests = [("abc", {"do_sample": True})] * 9 + [("z", {"temperature": 2.0})]
    options = {"max_gen_toks": 8}
    found = varied_scorer(**options).generate_until(requests)
    assert len(set(found[:9])) > 3
    again = varied_scorer(**options).generate_until(requests[::-1])
    assert again[0] == found[9] and sorted(again) == sorted(found)
    assert varied_scorer(**options, seed=1).generate_until(requests) != found


def test_text_ends_before_the_first_of_its_stop_strings():
    scorer = varied_scorer(max_gen_toks=12)
    (whole,) = scorer.generate_until([("abc", {})])
    stop, later = whole[3:5], whole[8:]
    assert 0 < whole.find(stop) < whole.find(later)
    for until in (stop, [stop], [later, stop, "", "0"]):
        assert scorer.generate_until([("abc", {"until": until})]) == [whole[: whole.find(stop)]]
    assert scorer.generate_until([("abc", {"until": "0"})]) == [whole]


def test_text_ends_at_the_end_token():
    scorer = tiny_scorer(tokenizer=letters(eos_token="."), max_gen_toks=6)
    end, mask = scorer.tokenizer.eos_token_id, MASK
    assert scorer.text(torch.tensor([0, 1, end, 2]), ()) == ("ab", True)
    assert scorer.text(torch.tensor([0, 1, mask, mask]), ()) == ("ab", False)
    assert scorer.text(torch.tensor([0, 1, 2]), ()) == ("abc", False)
    assert scorer.text(torch.tensor([0, 1, 2]), ("c", "bc")) == ("a", True)
    found = scorer.generate_until([("a", {"do_sample": True}) for _ in range(50)])
    assert all("." not in text for text in found) and len({len(text) for text in found}) > 1


def test_text_longer_than_the_model_is_made_in_blocks_with_as_much_context_as_fits():
    scorer, new = varied_scorer(), {"max_gen_toks": 30}
    found = scorer.generate_until([("abcdefghijklmnopqrst", new), ("ab", new)])
    for prompt, text in zip(["opqrst", "ab"], found, strict=True):
        assert text == blocks(scorer, prompt, 30, 6)
    assert varied_scorer(block_length=4).generate_until([("abcdefghijklmnopqrst", new)]) == [
        blocks(scorer, "mnopqrst", 30, 4)
    ]

    # Five tokens fit behind seven letters
    likely = scorer.generate_until([("abcdefghij", {"max_gen_toks": 5})])
    assert likely == [blocks(scorer, "defghij", 5, None)]
    assert varied_scorer(block_length=2).generate_until([("ab", {"max_gen_toks": 6})]) == [blocks(scorer, "ab", 6, 2)]


def blocks(scorer, prompt, new, length):
    ids = torch.tensor([scorer.tokenizer.encode(prompt)])
    options = {"block_length": length, "do_sample": False, "max_denoising_steps": 4}
    row = scorer.model.generate(ids, max_new_tokens=new, **options)[0, ids.shape[1] :]
    return scorer.tokenizer.decode(row)


def test_no_block_is_made_after_all_texts_have_stopped():
    scorer, calls = varied_scorer(), []
    scorer.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    requests = [("ab", {"max_gen_toks": 30}), ("xyz", {"max_gen_toks": 30})]
    whole = scorer.generate_until(requests)
    every, late = len(calls), whole[1][6:12]  # a string of the second block, of five
    until = [{"until": whole[0][0]}, {"until": late}]
    found = scorer.generate_until([(prompt, new | more) for (prompt, new), more in zip(requests, until, strict=True)])
    assert found == ["", whole[1][: whole[1].find(late)]] and len(calls) - every == every * 2 / 5


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": "elbo"}, "bound is 'elbo', but it must be one of nelbo, discrete, sampler"),
        ({"batch_size": "auto"}, "batch_size is 'auto', but it must be a positive integer"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 13}, "max_length is 13, but it must be from 2 to 12"),
        ({"max_length": 1}, "max_length is 1"),
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"candidates": 4}, "does not know candidates"),
    ],
)
def test_options_that_are_not_allowed_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_scorer(**options)


def test_a_tokenizer_of_another_mask_is_refused():
    scorer = tiny_scorer()
    with pytest.raises(ValueError, match="masks with id 28"):
        EDLMScorer(scorer.model, letters())


def test_requests_that_cannot_be_answered_are_refused():
    scorer = tiny_scorer(num_samples=3)
    with pytest.raises(ValueError, match="num_samples is 3"):
        scorer.loglikelihood([("a", "b")])
    with pytest.raises(ValueError, match="holds the mask token"):
        scorer.loglikelihood([("a[MASK]", "b")])
    with pytest.raises(ValueError, match="does not know beams"):
        scorer.generate_until([("a", {"beams": 2})])


def test_an_energy_that_takes_no_part_is_told(caplog):
    tiny_scorer(energy=True)
    assert "bound=nelbo is that of the denoiser alone" in caplog.text
    caplog.clear()
    scorer = tiny_scorer(energy=True, bound="sampler")
    assert not caplog.records
    scorer.generate_until([("a", {"max_gen_toks": 2})])
    assert "Greedy generation weighs no candidates" in caplog.text


# -------------------------------------------------------------------------------------------------------------- bridge


def test_without_the_harness_its_installation_is_advised():
    code = "import sys; sys.modules['lm_eval'] = None; import edlm_hf.lm_eval"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode and "pip install 'edlm-hf[lm-eval]'" in result.stderr.splitlines()[-1]


TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{start}}"
        doc_to_target: "{{label}}"
        doc_to_choice: "{{choices}}"
        metric_list: [{metric: acc}]
        """,
    "whole": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
        """,
    "answer": """
        output_type: generate_until
        doc_to_text: "{{start}}"
        doc_to_target: "{{choices[label]}}"
        generation_kwargs: {until: [" "], max_gen_toks: 20}
        metric_list: [{metric: exact_match}]
        """,
}


@pytest.fixture
def local_tasks(tmp_path):
    """A folder with a model, its tokenizer, data and tasks on it."""
    docs = [
        {"start": "the cat ", "choices": ["sat", "flew away"], "label": 0, "text": "the cat sat on the mat"},
        {"start": "a dog", "choices": [" barked", " sang"], "label": 1, "text": "a dog"},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))

    for name, body in TASKS.items():
        lines = [f"task: {name}", "dataset_path: json", "test_split: test"]
        lines += [f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}"]
        lines += [line.strip() for line in body.strip().splitlines()]
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines))

    scorer = tiny_scorer(energy=True)
    scorer.model.save_pretrained(tmp_path / "model")
    scorer.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_harness_runs_local_tasks_from_the_command_line(local_tasks):
    pytest.importorskip("lm_eval")
    arguments = f"pretrained={local_tasks / 'model'},bound=sampler,num_samples=4,num_steps=4,batch_size=8,device=cpu"
    command = [sys.executable, "-m", "edlm_hf.lm_eval", "--model_args", arguments, "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(local_tasks), "--output_path", str(local_tasks / "results"), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=local_tasks)
    assert done.returncode == 0, done.stderr

    (file,) = (local_tasks / "results").rglob("results_*.json")
    found = json.loads(file.read_text())
    assert found["results"]["choice"]["acc,none"] in (0, 0.5, 1)
    assert found["config"]["model"] == "edlm"
    assert set(found["config"]["estimates"]) == {"loglikelihood", "loglikelihood_rolling"}
    assert found["config"]["estimates"]["loglikelihood"]["standard_error"] > 0

    scorer = tiny_scorer(energy=True, bound="sampler", num_samples=4)
    nats = -sum(scorer.rolling(["the cat sat on the mat", "a dog"]))
    bits = found["results"]["whole"]["bits_per_byte,none"]
    assert bits == pytest.approx(nats / np.log(2) / len("the cat sat on the mata dog"), rel=1e-5)


def test_the_class_of_the_harness_answers_its_requests(local_tasks):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    import edlm_hf.lm_eval  # noqa: F401  (registers the class)

    folder = local_tasks / "model"
    lm = get_model("edlm").create_from_arg_string(
        f"pretrained={folder},num_samples=2,num_steps=4,batch_size=4,progress_bar=False,max_gen_toks=3",
        {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
    )
    from_command_line = {"batch_size": "2", "device": "cpu"}
    assert get_model("edlm").create_from_arg_obj({"pretrained": folder}, from_command_line).scorer.batch_size == 2
    assert get_model("hf") is not None
    assert lm.scorer.batch_size == 4 and lm.device.type == "cpu" and lm.max_length == LENGTH

    pairs = [("ab", "c"), ("", "de")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scorer = tiny_scorer(energy=True, max_gen_toks=3)
    for (value, greedy), expected in zip(lm.loglikelihood(requests), scorer.loglikelihood(pairs), strict=True):
        assert (pytest.approx(value, rel=1e-5), greedy) == expected

    (value,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abc",), 0)])
    assert [pytest.approx(value, rel=1e-5)] == scorer.rolling(["abc"])
    request = ("ab", {"until": ["z"]})
    assert lm.generate_until([Instance("generate_until", {}, request, 0)]) == scorer.generate_until([request])

    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert lm.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"
    assert lm.chat_template(True) == lm.tokenizer.chat_template and lm.tokenizer_name
