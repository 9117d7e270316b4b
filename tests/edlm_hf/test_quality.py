"""Quality of samples: generative perplexity equals a direct computation, and the other measures known answers."""

import json
import math
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from published import golden, tiny_gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, GPT2LMHeadModel, PreTrainedTokenizerFast

import edlm_hf
from edlm_hf.evaluation.estimate import Estimate, mean_estimate, ratio_estimate
from edlm_hf.evaluation.perplexity import (
    generative_perplexity,
    judge_weight_mask,
    next_token_nlls,
    windows,
)
from edlm_hf.evaluation.quality import markdown_table, sample_report
from edlm_hf.evaluation.text_statistics import (
    distinct_n,
    mauve,
    spelling_accuracy,
    unigram_entropy,
    vocabulary_of,
    word_entropy,
)

END = 11  # of tiny_gpt2, which is also its start token


def numbers_tokenizer(size=12, end=END):
    """Words w0, w1, ... are tokens 0, 1 and so on. One of them is both start and end of text, as in GPT-2."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=f"w{end}", bos_token=f"w{end}")


def as_text(row):
    return " ".join(f"w{token}" for token in row)


def random_rows(count=9, longest=12):
    generator = random.Random(0)
    rows = [generator.choices(range(12), k=generator.randrange(2, longest + 1)) for _ in range(count)]
    return [*rows, [1, END, 2, END, 3], [END, 4, END], [END, END]]


def direct_nlls(judge, row, scored=1):
    """-log p of the tokens that count among row[scored:], one row alone without padding."""
    logits = judge(torch.tensor([row])).logits[0].double()
    first_end = row.index(END) if END in row else None
    counted = [i for i in range(scored, len(row)) if row[i] != END or i == first_end]
    return [-logits[i - 1].log_softmax(-1)[row[i]].item() for i in counted]


def judged(rows, judge=None, **options):
    return generative_perplexity(
        [as_text(row) for row in rows],
        judge or tiny_gpt2(),
        numbers_tokenizer(),
        **options,
    )


# -------------------------------------------------------------------------------------------- generative perplexity


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_every_text_counts_whatever_the_batch_size(batch_size):
    rows, judge = random_rows(), tiny_gpt2()
    direct = [direct_nlls(judge, row) for row in rows]
    nats, tokens = sum(map(sum, direct)), sum(map(len, direct))
    result = judged(rows, batch_size=batch_size)
    assert (result.num_samples, result.num_tokens, result.unit) == (len(rows), tokens, "perplexity")
    assert result.nll.value == pytest.approx(nats / tokens, abs=1e-6)
    assert result.value == pytest.approx(math.exp(nats / tokens), rel=1e-6)

    for perplexity, nlls in zip(result.sample_perplexities, direct, strict=True):
        expected = math.exp(sum(nlls) / len(nlls)) if nlls else math.nan
        assert perplexity == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_standard_errors_are_those_of_a_ratio_over_texts():
    rows, judge = random_rows(), tiny_gpt2()
    result, direct = judged(rows), [direct_nlls(judge, row) for row in rows]
    expected = ratio_estimate(
        [sum(nlls) for nlls in direct],
        [len(nlls) for nlls in direct],
        "nats/token",
    )
    assert result.nll.standard_error == pytest.approx(expected.standard_error, rel=1e-5)
    assert result.standard_error == pytest.approx(result.value * expected.standard_error, rel=1e-5)


def test_text_after_the_first_end_counts_but_not_a_second_end():
    ids = torch.tensor([[1, 2, END, 3, END, 4], [END, 1, 2, 3, END, END]])
    assert judge_weight_mask(ids, END).tolist() == [[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]]
    assert judge_weight_mask(ids, None).all()


def test_padding_does_not_count_even_if_it_is_the_end_of_text():
    ids, real = torch.tensor([[END, END, 1, END, 2], [1, 2, 3, END, END]]), [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert judge_weight_mask(ids, END, torch.tensor(real)).tolist() == real


class RecordedJudge(GPT2LMHeadModel):
    """Gives the recorded logits of the recorded rows."""

    def forward(self, input_ids, **_):
        row = (self.tokens[:, None] == input_ids).all(-1).int().argmax(0)
        return SimpleNamespace(logits=self.recorded[row])


@pytest.fixture
def recorded():
    g = golden("g_metrics")
    judge = RecordedJudge(
        tiny_gpt2(
            vocab_size=g["logits"].shape[-1],
            n_positions=g["tokens"].shape[1],
        ).config
    )
    judge.tokens, judge.recorded = g["tokens"], g["logits"]
    return g, judge


def test_golden_weights_and_likelihoods(recorded):
    g, judge = recorded
    rows = g["tokens"][: g["rows_scored"]]
    assert torch.equal(judge_weight_mask(rows, 7)[:, 1:].long(), g["weight_mask"])
    nlls = next_token_nlls(judge, rows.tolist(), [1] * len(rows))
    torch.testing.assert_close(torch.stack(nlls).float(), g["nlls"], atol=1e-5, rtol=0)


def test_golden_perplexity(recorded):
    g, judge = recorded
    texts, tokenizer = [as_text(row) for row in g["tokens"].tolist()], numbers_tokenizer(g["logits"].shape[-1], end=7)
    for rows in (g["rows_scored"], len(texts)):  # the last row is all end-of-text: nothing to count
        result = generative_perplexity(texts[:rows], judge, tokenizer, batch_size=int(g["batch_size"]))
        assert result.value == pytest.approx(g["ppl_released"].item(), rel=1e-5)
        assert result.num_tokens == g["weight_mask"].sum()


def test_the_start_token_makes_first_tokens_count():
    rows, judge = [[3], [END], [END, 5, END]], tiny_gpt2()
    result = judged(rows, judge, add_start_token=True)
    expected = []
    for row in rows:
        nlls = next_token_nlls(judge, [[END, *row]], [1])[0].tolist()
        expected += nlls[:2]  # of the last row the second end does not count
    assert result.num_tokens == len(expected) == 4
    assert result.nll.value == pytest.approx(sum(expected) / 4, abs=1e-6)


@pytest.mark.parametrize("context,stride", [(12, 5), (12, 11), (4, 1), (2, 1)])
def test_windows_count_every_token_once_with_context(context, stride):
    for length in (2, context, context + 1, 40):
        parts = list(windows(length, context, stride))
        assert [i for _, scored, stop in parts for i in range(scored, stop)] == list(range(1, length))
        assert all(stop - first <= context for first, _, stop in parts)
        assert all(scored - first >= context - stride for first, scored, _ in parts[1:])


def test_longer_texts_are_scored_in_windows():
    rows, judge = random_rows(longest=30), tiny_gpt2()
    direct = []
    for row in rows:
        for first, scored, stop in windows(len(row), 12, 5):
            nlls = next_token_nlls(judge, [row[first:stop]], [scored - first])[0]
            weights = judge_weight_mask(torch.tensor([row]), END)[0, scored:stop]
            direct += nlls[weights].tolist()

    result = judged(rows, judge, stride=5, batch_size=4)
    assert result.num_tokens == len(direct)
    assert result.nll.value == pytest.approx(sum(direct) / len(direct), abs=1e-6)


def test_a_shorter_context_can_be_asked_for():
    rows = random_rows()
    assert judged(rows, max_length=4, stride=3).num_tokens == judged(rows).num_tokens
    assert judged(rows, max_length=12, stride=11).value == pytest.approx(judged(rows).value, rel=1e-6)


def test_the_judge_is_used_without_dropout_and_left_in_its_mode():
    judge = tiny_gpt2().train()
    judge.transformer.h[0].eval()
    modes = [module.training for module in judge.modules()]
    assert judged(random_rows(), judge).value == judged(random_rows()).value
    assert [module.training for module in judge.modules()] == modes
    assert all(parameter.grad is None for parameter in judge.parameters())


def test_log_probabilities_of_a_bfloat16_judge_are_taken_in_float32():
    judge, rows = tiny_gpt2().bfloat16(), random_rows()
    direct = [nll for row in rows for nll in direct_nlls(judge, row)]
    assert judged(rows, judge, batch_size=1).nll.value == pytest.approx(sum(direct) / len(direct), abs=1e-5)


def test_progress_is_shown_on_standard_error_and_only_if_asked_for(capsys):
    judged(random_rows())
    assert capsys.readouterr() == ("", "")
    judged(random_rows(), progress_bar=True)
    out, err = capsys.readouterr()
    assert out == "" and "generative perplexity" in err


def test_judge_and_tokenizer_are_found_by_name(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    numbers_tokenizer().save_pretrained(tmp_path)
    texts, expected = [as_text(row) for row in random_rows()], judged(random_rows()).value
    assert generative_perplexity(texts, str(tmp_path), device="cpu").value == pytest.approx(expected, rel=1e-6)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert generative_perplexity(texts, loaded).value == pytest.approx(expected, rel=1e-6)
    assert generative_perplexity(texts, tiny_gpt2(), str(tmp_path)).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "rows,options,message",
    [
        ([], {}, "texts is empty"),
        ([[1, 2], [3]], {}, "Text 1 has 1 tokens, but at least 2 .* add_start_token=True"),
        ([[1, 2], []], {"add_start_token": True}, "Text 1 has 0 tokens, but at least 1 "),
        ([[1] * 13], {}, "Text 0 has 13 tokens, but the context of the judge is 12.* stride, for example 6"),
        ([[1, 2]], {"stride": 12}, "stride is 12, but it must be from 1 to 11"),
        ([[1, 2]], {"stride": 0}, "stride is 0"),
        ([[1, 2]], {"max_length": 13}, "max_length is 13, but it must be from 2 to the context of the judge, 12"),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
        ([[END, END]], {}, "1 samples with 0 in all to divide by"),
    ],
)
def test_what_cannot_be_scored_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        judged(rows, **options)


def test_a_judge_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"texts is a single one \('w1 w2'\)"):
        generative_perplexity("w1 w2", tiny_gpt2(), numbers_tokenizer())
    with pytest.raises(ValueError, match="no name under which to find its tokenizer"):
        generative_perplexity(["w1 w2"], tiny_gpt2())
    with pytest.raises(ValueError, match="token 15, but the judge knows ids below 12"):
        generative_perplexity(["w1 w15"], tiny_gpt2(), numbers_tokenizer(size=20))

    without_start = numbers_tokenizer()
    without_start.bos_token = None
    with pytest.raises(ValueError, match="no start token"):
        generative_perplexity(["w1 w2"], tiny_gpt2(), without_start, add_start_token=True)


@pytest.mark.parametrize("logit", [math.nan, -math.inf, torch.finfo(torch.float32).min])
def test_tokens_that_are_impossible_for_the_judge_are_refused(recorded, logit):
    _, judge = recorded
    judge.recorded = judge.recorded.clone()
    judge.recorded[1, :, 14] = logit
    texts, tokenizer = [as_text(row) for row in judge.tokens.tolist()], numbers_tokenizer(20, end=7)
    with pytest.raises(ValueError, match=r"token of text 1 \('w7 w10 w14 .* probability zero or NaN"):
        generative_perplexity(texts, judge, tokenizer, batch_size=2)


# ------------------------------------------------------------------------------------------ diversity and spelling


def test_golden_entropy():
    g = golden("g_metrics")
    for row, bits in zip(g["tokens"], g["entropy_bits"], strict=True):
        assert unigram_entropy(row[None]).value == pytest.approx(bits.item(), abs=1e-6)
    result = unigram_entropy(g["tokens"])
    assert (result.num_samples, result.unit) == (5, "bits")
    assert result.value == pytest.approx(g["entropy_bits"].mean().item(), abs=1e-6)
    assert result.standard_error == pytest.approx(g["entropy_bits"].std().item() / math.sqrt(5), abs=1e-6)


def test_entropy_of_ragged_samples_and_of_words():
    assert unigram_entropy([[1, 2, 3, 4], [5, 5], [6, 7]]) == mean_estimate([2, 0, 1], "bits")
    assert unigram_entropy([torch.tensor([1, 2]), torch.tensor([3])]) == mean_estimate([1, 0], "bits")
    assert word_entropy(["a b  c\nd", "a a", ""]) == mean_estimate([2, 0, 0], "bits")


def test_distinct_n_is_the_share_of_new_n_grams_within_a_sample():
    texts = ["a b a b", "a b", "c"]  # pairs: ab ba ab, ab, none
    assert distinct_n(texts, 2) == ratio_estimate([2, 1, 0], [3, 1, 0], "distinct 2-grams")
    assert distinct_n(texts, 1).value == pytest.approx(5 / 7)
    assert distinct_n(torch.tensor([[1, 2, 1, 2], [3, 3, 3, 3]])).value == pytest.approx(3 / 6)


def test_spelling_accuracy_is_the_share_of_known_words():
    vocabulary = vocabulary_of(["the cat sat", "the cat"], min_count=2)
    assert vocabulary == {"the", "cat"}
    expected = ratio_estimate([2, 0, 0], [3, 1, 0], "known words")
    assert spelling_accuracy(["the catt cat", "sat", ""], vocabulary) == expected
    assert expected.value == 0.5


def test_words_are_spelled_the_same_whatever_stands_around_them():
    printed = '"The CAT, sat!"\nDon\'t, über-Katze: 7 cats_dogs…'
    assert vocabulary_of([printed]) == {"the", "cat", "sat", "don", "t", "über", "katze", "cats", "dogs"}
    assert spelling_accuracy([printed], {"The", "cat", "don't", "ÜBER"}).value == 5 / 9


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: unigram_entropy([]), "ids is empty"),
        (lambda: unigram_entropy(torch.tensor([1, 2])), "ids is a single one"),
        (lambda: word_entropy("a b"), "texts is a single one"),
        (lambda: distinct_n(["a b"], 0), "n is 0"),
        (lambda: distinct_n(["a b", "a"], 3), "None of the 2 samples has 3 tokens"),
        (lambda: spelling_accuracy(["", " "], {"a"}), "not a word in the 2 texts"),
        (lambda: spelling_accuracy(["a"], set()), "vocabulary is empty"),
        (lambda: spelling_accuracy(["a"], {"7", "!"}), "not a word in the vocabulary"),
        (lambda: mean_estimate([], "bits"), "0 samples"),
    ],
)
def test_measures_refuse_what_has_no_answer(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mauve_is_left_to_its_package(monkeypatch):
    def compute_mauve(p_text, q_text, **arguments):
        assert (p_text, q_text, arguments) == (["human"] * 3, ["a", "b"], {"verbose": False, "device_id": 1})
        return SimpleNamespace(mauve=0.25)

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    result = mauve(["a", "b"], ["human"] * 3, device_id=1)
    assert (result.value, result.num_samples, math.isnan(result.standard_error)) == (0.25, 2, True)

    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ImportError, match="pip install mauve-text"):
        mauve(["a", "b"], ["human"] * 3)


# ------------------------------------------------------------------------------------------- estimates and the report


def test_estimates_print_value_error_unit_and_number():
    assert str(Estimate(1.7318, 0.0042, 512, "nats/token")) == "1.732 ± 0.004 nats/token (n=512)"
    assert str(Estimate(66.81, 3.2, 64, "perplexity")) == "67 ± 3 perplexity (n=64)"
    assert str(Estimate(128.0, 0.0, 2, "calls")) == "128 ± 0 calls (n=2)"
    assert str(mean_estimate([1.5], "bits")) == "1.5 ± nan bits (n=1)"


def test_the_ratio_has_the_standard_error_it_states():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (4000, 64), generator=generator).double()
    y = 2 * x + x.sqrt() * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    results = [ratio_estimate(*pair, "") for pair in zip(y, x, strict=True)]
    values, errors = (torch.tensor([getattr(r, name) for r in results]) for name in ("value", "standard_error"))
    assert values.mean().item() == pytest.approx(2, abs=5 * values.std().item() / math.sqrt(4000))
    assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.05)


def test_a_report_gives_entropy_number_and_both_networks_calls_beside_perplexity():
    rows = [[1, 2, 3, 1], [4, 5, 4, 4]]
    texts = [as_text(row) for row in rows]
    report = sample_report(
        texts,
        torch.tensor(rows),
        judge=tiny_gpt2(),
        tokenizer=numbers_tokenizer(),
        vocabulary={"w1", "w2", "w4"},
        denoiser_calls=torch.tensor([3, 4]),
        energy_calls=[0, 0],
        seconds=5.0,
    )
    assert report.generative_perplexity == judged(rows)
    assert report.unigram_entropy == unigram_entropy(rows)
    assert report.spelling_accuracy.value == 6 / 8
    assert (report.num_samples, report.seconds_per_sample) == (2, 2.5)
    assert json.loads(json.dumps(report.to_dict()))["denoiser_calls"]["value"] == 3.5

    plain = sample_report(
        texts,
        rows,
        judge=None,
        denoiser_calls=[1, 1],
        energy_calls=[2, 2],
        seconds=1,
    )
    header, line, first, second = markdown_table({"T = 4": report, "plain": plain}).splitlines()
    assert header == (
        "| samples | n | Gen-PPL | entropy (bits) | word entropy (bits) | known words | denoiser calls | energy calls "
        "| seconds |"
    )
    assert line == "|" + " --- |" * 9

    perplexity = judged(rows).rounded()
    assert first == f"| T = 4 | 2 | {perplexity} | 1.2 ± 0.3 | 1.2 ± 0.3 | 0.75 ± 0 | 3.5 ± 0.5 | 0 ± 0 | 2.5 |"
    assert second == "| plain | 2 | - | 1.2 ± 0.3 | 1.2 ± 0.3 | - | 1 ± 0 | 2 ± 0 | 0.5 |"


def test_a_report_is_about_one_set_of_samples():
    with pytest.raises(ValueError, match="one per sample, but their lengths are .*'denoiser_calls': 1"):
        sample_report(
            ["a", "b"],
            [[1], [2]],
            judge=None,
            denoiser_calls=[1],
            energy_calls=[0, 0],
            seconds=1,
        )


def test_a_judge_that_sees_later_tokens_is_refused():
    model = AutoModelForMaskedLM.from_pretrained(edlm_hf.checkpoint("edlm-grammar"))
    for judge in (model, model.denoiser):
        with pytest.raises(ValueError, match="predicts a token from later ones too"):
            generative_perplexity(
                ["the king reads his book"],
                judge,
                edlm_hf.checkpoint("edlm-grammar"),
            )
    judged = generative_perplexity(
        ["the king reads his book"],
        model.energy_model,
        edlm_hf.checkpoint("edlm-grammar"),
    )
    assert judged.num_tokens > 0


def test_samples_that_are_none_are_refused():
    with pytest.raises(ValueError, match="ids is None"):
        unigram_entropy(None)
    with pytest.raises(ValueError, match=r"texts\[0\] is a list, but a text is needed"):
        word_entropy([[3, 4]])
