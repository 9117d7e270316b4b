"""Texts for an evaluation harness are those of `generate()`, and end where a request says."""

import torch
from exact import MASK
from scorers import letters, tiny_scorer, varied_scorer


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
