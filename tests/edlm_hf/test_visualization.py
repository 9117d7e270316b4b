"""A generation as a web page: what it says, that it stands alone, and that no text can break out of it."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from published import randomised, tiny_config, tiny_denoiser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.cli import app
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.visualization import generation_html, page, pieces, trajectories

TOKENIZER = text8_tokenizer(12)
MASK, START = TOKENIZER.mask_token_id, TOKENIZER.bos_token_id


def ids(*texts):
    """Token ids (B, L), masks for underscores, the start token for <."""
    special = {"_": MASK, "<": START}
    return torch.tensor([[special.get(x, TOKENIZER.convert_tokens_to_ids(x)) for x in text] for text in texts])


def written_output():
    """Two rows of three steps. In the second row nothing happens before the last one."""
    nan, inf = torch.nan, torch.inf
    return EDLMGenerationOutput(
        sequences=ids("<abc", "<ddd"),
        energies=torch.tensor([[[1.5, -2.25], [nan, nan]], [[nan, nan], [nan, nan]], [[nan, nan], [inf, 3.0]]]),
        effective_sample_size=torch.tensor([[1.2, nan], [nan, nan], [nan, 1.0]]),
        history=(ids("<a__", "<___"), ids("<a_c", "<___"), ids("<a_c", "<___"), ids("<abc", "<ddd")),
        chosen=torch.tensor([[1, -1], [-1, -1], [-1, 1]]),
    )


class Page(HTMLParser):
    """The elements of a page as (name, attributes, text inside)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in ("meta", "input"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def named(self, tag, **attributes):
        return [
            (given, text) for name, given, text in self.elements if name == tag and attributes.items() <= given.items()
        ]

    def texts(self):
        return [text for _, text in self.named("p", **{"class": "text"})]

    def rows(self):
        return json.loads(self.named("script", id="rows")[0][1])


def generated(prompt=None, **options):
    sizes = {"vocab_size": len(TOKENIZER)}
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(**sizes), randomised(EDLMEnergyModel(tiny_config(**sizes)))
    )
    return model.generate(
        prompt,
        **({"max_denoising_steps": 5, "num_candidates": 3} | options),
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
        output_history=True,
    )


def test_page_says_what_happened():
    shown = Page(generation_html(written_output(), TOKENIZER))
    assert not shown.open and shown.texts() == ["abc", "ddd"]
    first, second = shown.rows()
    assert first["changes"] == [[[0, ""]], [[0, "a"]], [[3, "b"]], [[1, "c"]]]
    assert second["changes"] == [[[0, ""]], *[[[3, "d"]]] * 3]
    assert first["energies"] == [[1.5, -2.25], None, None] and first["chosen"] == [1, None, None]
    assert second["energies"] == [None, None, [None, 3.0]] and second["chosen"] == [None, None, 1]
    assert first["effective_sample_size"] == [1.2, None, None]

    drawn = {text: given for given, text in shown.named("span", **{"class": "drawn"})}
    assert drawn["c"] == {"class": "drawn", "style": "--age: 0.0", "title": "step 1"}
    assert drawn["b"] == {"class": "drawn", "style": "--age: 1.0", "title": "step 3"}
    # The first one is the legend's
    assert [text for _, text in shown.named("span", **{"class": "given"})][1:3] == ["", "a"]


@pytest.mark.parametrize("options", [{}, {"sampler": "first_hitting"}, {"block_length": 3}, {"do_sample": False}])
def test_page_of_a_generation_leads_from_its_prompt_to_its_text(options):
    out = generated(ids("a__d", "_b_d"), max_new_tokens=6, **options)
    shown = Page(generation_html(out, TOKENIZER))
    assert shown.texts() == TOKENIZER.batch_decode(out.sequences, skip_special_tokens=True)

    for r, row in enumerate(shown.rows()):
        for step, state in enumerate(out.history):
            now = [[text for when, text in changes if when <= step] for changes in row["changes"]]
            assert [not texts for texts in now] == (state[r] == MASK).tolist()
        assert sum(chosen is not None for chosen in row["chosen"]) == int(out.num_energy_calls[r])
        assert len(row["energies"]) == len(row["chosen"]) == len(out.history) - 1


def test_page_stands_alone_and_works_with_a_keyboard_and_a_screen_reader():
    text = generation_html(generated(batch_size=2), TOKENIZER)
    shown = Page(text)
    assert not re.search(r"https?:|//\w|url\(|@import|\bsrc=|<link", text)

    policy = shown.named("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy.startswith("default-src 'none'")
    assert shown.named("html", lang="en")
    assert shown.named("title")
    assert "prefers-color-scheme: dark" in text
    assert shown.named("label", **{"for": "step"}) and shown.named("output", **{"for": "step"})

    slider = shown.named("input", id="step", type="range")[0][0]
    assert (slider["min"], slider["max"]) == ("0", "5")
    assert [given["aria-labelledby"] for given, _ in shown.named("section")] == ["text-1", "text-2"]
    assert {given["id"] for given, _ in shown.named("h2")} == {"text-1", "text-2"}


def test_page_opens_at_the_step_with_the_lowest_effective_sample_size():
    def opened_at(output):
        return Page(generation_html(output, TOKENIZER)).named("input", id="step")[0][0]["value"]

    output = written_output()
    assert opened_at(output) == "3"  # 1.0 in the second row, 1.2 in the first step of the first
    output.effective_sample_size[2, 1] = 1.9
    assert opened_at(output) == "1"

    output.energies = None
    assert opened_at(output) == "3"  # the last one, where there is no energy


class Shouting:
    """A tokenizer whose every token is dangerous in HTML."""

    mask_token_id, all_special_ids = 9, [9]

    def decode(self, tokens):
        return '</script><b title="&amp;">' * len(tokens)


def test_no_text_breaks_out_of_the_page():
    out = EDLMGenerationOutput(
        sequences=torch.tensor([[1, 2]]),
        history=(torch.tensor([[1, 9]]), torch.ones(1, 2)),
    )
    text = generation_html(out, Shouting())
    shown = Page(text)
    assert shown.texts() == ['</script><b title="&amp;">' * 2] and not shown.named("b")
    assert text.count("</script>") == len(shown.named("script")) == 2
    assert shown.rows()[0]["changes"][1] == [[1, '</script><b title="&amp;">']]


def test_output_without_history_or_mask_is_refused_with_advice():
    out = written_output()
    for lacking in (EDLMGenerationOutput(sequences=out.sequences), out.sequences):
        with pytest.raises(ValueError, match="has no history. Generate with .*output_history=True"):
            generation_html(lacking, TOKENIZER)

    tokenizer = text8_tokenizer(12)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token. Pass mask_token_id"):
        generation_html(out, tokenizer)
    assert generation_html(out, tokenizer, mask_token_id=MASK) == generation_html(out, TOKENIZER)


def test_without_an_energy_there_are_no_candidates():
    shown = Page(generation_html(generated(num_candidates=1), TOKENIZER))
    assert not shown.named("div") and shown.rows()[0]["energies"] == [None] * 5
    assert Page(generation_html(generated(), TOKENIZER)).named("div", **{"class": "weighing"})


def test_what_the_end_of_the_text_cuts_off_is_gone_after_the_last_step():
    out = EDLMGenerationOutput(sequences=ids("ab<<"), history=(ids("____"), ids("__c_"), ids("abcd")))
    changes = trajectories(out, TOKENIZER)[0].changes
    assert changes == [[(2, "a")], [(2, "b")], [(1, "c"), (2, "")], [(2, "")]]
    assert Page(page(trajectories(out, TOKENIZER))).texts() == ["ab"]


def test_what_was_never_filled_is_shown_as_a_mask():
    out = EDLMGenerationOutput(sequences=ids("a_"), history=(ids("__"), ids("a_")))
    assert Page(generation_html(out, TOKENIZER)).texts() == ["a░"]


def test_rows_of_several_calls_share_a_page():
    long, short = generated(), generated(max_denoising_steps=2, batch_size=2)
    shown = Page(page(trajectories(long, TOKENIZER) + trajectories(short, TOKENIZER)))
    assert [len(row["energies"]) for row in shown.rows()] == [5, 2, 2]
    assert shown.named("input", id="step")[0][0]["max"] == "5"


def test_pieces_of_bytes_join_to_the_text():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = "añ €b"
    encoded = tokenizer.encode(text)
    found = pieces(encoded, tokenizer)
    assert found == ["a", "", "ñ", " ", "", "", "€", "b"] and "".join(found) == text
    # The text is cut inside a character
    assert "".join(pieces(encoded[:-2], tokenizer)) == tokenizer.decode(encoded[:-2])


def test_spaces_that_decoding_adds_stay_between_the_pieces():
    backend = Tokenizer(
        models.WordPiece(
            {"[UNK]": 0, "play": 1, "##ing": 2, "now": 3},
            unk_token="[UNK]",
        )
    )
    backend.decoder = decoders.WordPiece(cleanup=False)
    assert pieces([1, 2, 3, 1], PreTrainedTokenizerFast(tokenizer_object=backend)) == ["play", "ing", " now", " play"]


def test_command_writes_the_page(tmp_path):
    sizes = {"vocab_size": len(TOKENIZER)}
    EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(**sizes), randomised(EDLMEnergyModel(tiny_config(**sizes)))
    ).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    arguments = [
        "generate",
        "--model",
        str(tmp_path),
        "--prompt",
        "ab[MASK]d",
        "--max-denoising-steps",
        "3",
        "--json",
        "--html",
    ]
    arguments += [str(tmp_path / "page.html"), "--num-return-sequences", "3", "--batch-size", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output

    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert shown.texts() == json.loads(result.stdout)
    assert shown.rows()[0]["changes"][1] == [[0, "a"]] and not list(tmp_path.glob(".page*"))

    result = CliRunner().invoke(app, [*arguments, "--html", str(tmp_path / "none" / "page.html")])
    assert result.exit_code == 2 and "There is no folder" in " ".join(result.output.split())
