"""A generation as a picture: a valid file that holds every state, whatever the tokens are."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from published import randomised, tiny_config, tiny_denoiser
from typer.testing import CliRunner

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.cli import app
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.picture import generation_picture, make_picture
from edlm_hf.picture.layout import places, width_of
from edlm_hf.tokenization import text8_tokenizer, train_subword_tokenizer

TOKENIZER = text8_tokenizer(12)
MASK, START = TOKENIZER.mask_token_id, TOKENIZER.bos_token_id


class Picture:
    """A picture as it was parsed."""

    def __init__(self, svg: str):
        self.root = ElementTree.fromstring(svg)

    def parts(
        self,
        tag: str,
        kind: str | None = None,
        state: int | None = None,
    ) -> list[ElementTree.Element]:
        """The elements of a tag and class, in the whole picture or in one state."""
        root = self.root
        if state is not None:
            (root,) = [group for group in self.parts("g") if group.get("id") == f"state-{state}"]
        found = root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")
        return [part for part in found if kind is None or part.get("class") == kind]

    def texts(self, kind: str, state: int) -> list[str]:
        return [part.text for part in self.parts("text", kind, state)]

    def blocks(self, kind: str, state: int) -> int:
        """How many masks of a kind a state has."""
        return sum(part.get("d").count("M") for part in self.parts("path", kind, state))

    def states(self) -> dict[str, str]:
        """The text of every state, as a screen reader says it."""
        groups = [group for group in self.parts("g") if group.get("id")]
        return {group.get("id"): group.get("aria-label") for group in groups}


def ids(text: str) -> torch.LongTensor:
    """Token ids (1, L), masks for underscores, the start token for <."""
    special = {"_": MASK, "<": START}
    return torch.tensor([[special.get(letter, TOKENIZER.convert_tokens_to_ids(letter)) for letter in text]])


def written_output() -> EDLMGenerationOutput:
    """Three steps. The second one does nothing and weighs no candidates."""
    nan, inf = torch.nan, torch.inf
    return EDLMGenerationOutput(
        sequences=ids("<ab d"),
        energies=torch.tensor([[[1.0, -2.0, 3.0]], [[nan, nan, nan]], [[4.0, inf, 6.0]]]),
        effective_sample_size=torch.tensor([[1.2], [nan], [1.0]]),
        history=(ids("<a___"), ids("<a__d"), ids("<a__d"), ids("<ab d")),
        chosen=torch.tensor([[1], [-1], [0]]),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A composite with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": len(TOKENIZER)}
    energy = randomised(EDLMEnergyModel(tiny_config(**sizes)))
    EDLMForMaskedDiffusion.from_components(tiny_denoiser(**sizes), energy).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_picture_holds_every_state():
    picture = Picture(generation_picture(written_output(), TOKENIZER))
    assert picture.states() == {"state-0": "a░░░", "state-1": "a░░d", "state-2": "a░░d", "state-3": "ab d"}

    assert [picture.blocks("mask", step) for step in range(4)] == [2, 2, 0, 0]
    assert [picture.blocks("next", step) for step in range(4)] == [1, 0, 2, 0]
    assert [picture.texts("given", step) for step in range(4)] == [["a"]] * 4
    assert [picture.texts("new", step) for step in range(4)] == [[], ["d"], [], ["b"]]
    assert [picture.texts("old", step) for step in range(4)] == [[], [], ["d"], ["d"]]


def test_bars_are_the_energies_above_the_least_one_and_the_taken_one_is_marked():
    picture = Picture(generation_picture(written_output(), TOKENIZER))

    def heights(step):
        return [float(bar.get("height")) for bar in picture.parts("rect", state=step)]

    def kinds(step):
        return [bar.get("class") for bar in picture.parts("rect", state=step)]

    # The largest difference of the picture is 5, in the first state: 36 pixels above 4 for none
    assert heights(0) == pytest.approx([4 + 32 * 3 / 5, 4, 36])
    assert heights(2) == pytest.approx([4, 36, 4 + 32 * 2 / 5])
    assert kinds(0) == ["bar", "taken", "bar"]
    assert kinds(2) == ["taken", "bar", "bar"]
    assert heights(1) == heights(3) == []


def test_candidates_that_are_all_impossible_have_the_longest_bars():
    output = written_output()
    output.energies[2] = torch.inf
    picture = Picture(generation_picture(output, TOKENIZER))
    assert [float(bar.get("height")) for bar in picture.parts("rect", state=2)] == [36, 36, 36]


def test_states_that_move_stand_in_one_place_and_the_finished_text_stays():
    svg = generation_picture(written_output(), TOKENIZER, animate=True)
    picture = Picture(svg)
    assert picture.states() == {"state-0": "a░░░", "state-1": "a░░d", "state-2": "a░░d", "state-3": "ab d"}

    # Each has its turn of 0.8 seconds, then the last one waits 5: that is 7.4 in all
    groups = [group for group in picture.parts("g") if group.get("id")]
    assert [group.get("style") for group in groups] == [*(f"animation-delay: {x}s" for x in (0.0, 0.8, 1.6)), None]
    assert "animation: show 7.4s" in svg and "32.432%, 100% { visibility: visible; }" in svg
    assert {text.get("y") for step in range(4) for text in picture.parts("text", "given", step)} == {"65"}

    # Without animations all but the last are hidden, and no script is needed
    assert [group.get("class") for group in groups] == ["state", "state", "state", "state last"]
    assert ".state { visibility: hidden;" in svg and ".state.last { visibility: visible;" in svg
    assert "prefers-reduced-motion" in svg and "<script" not in svg


def test_without_an_energy_there_are_no_bars():
    output = written_output()
    output.energies = output.chosen = None
    picture = Picture(generation_picture(output, TOKENIZER))
    assert not picture.parts("rect", "bar") and not picture.parts("rect", "taken")
    assert "energy" not in " ".join(label.text for label in picture.parts("text", "label"))


def test_of_many_states_some_are_drawn_the_first_and_the_last_among_them():
    picture = Picture(generation_picture(written_output(), TOKENIZER, most_states=2))
    assert picture.states() == {"state-0": "a░░░", "state-3": "ab d"}

    # New is whatever was a mask in the state above
    assert picture.texts("new", 3) == ["b d"]


class Shouting:
    """A tokenizer whose every token is dangerous in XML."""

    mask_token_id, all_special_ids = 9, [9]

    def decode(self, tokens):
        return ']]></text><a b="&amp;">\x00\ufffe\n' * len(tokens)


def test_no_text_breaks_out_of_the_picture():
    output = EDLMGenerationOutput(
        sequences=torch.tensor([[1]]),
        history=(torch.tensor([[9]]), torch.ones(1, 1)),
    )
    picture = Picture(generation_picture(output, Shouting()))
    shown = ']]></text><a b="&amp;">␀\ufffd↵'
    assert picture.states() == {"state-0": "░", "state-1": shown}
    assert picture.texts("new", 1) == [shown]
    assert not picture.parts("a")


def test_sub_words_keep_their_places_in_all_states():
    text = 'one two "three", four:\nfive one two "three", four: five 文字'
    tokenizer = train_subword_tokenizer([text] * 4, vocab_size=270)
    final = torch.tensor([tokenizer(text).input_ids])
    history = [torch.full_like(final, tokenizer.mask_token_id)]
    for step in range(3):
        revealed = torch.arange(final.shape[1]) % 3 == step
        history.append(torch.where(revealed, final, history[-1]))

    output = EDLMGenerationOutput(sequences=final, history=tuple(history))
    picture = Picture(generation_picture(output, tokenizer, columns=16))
    assert picture.states()["state-3"] == text.replace("\n", "↵")

    # A letter that is revealed in a step stands where it stands at last
    tops = {step: min(float(part.get("y")) for part in picture.parts("text", "label", step)) for step in range(4)}

    def letters(step):
        found = {}
        for kind in ("new", "old"):
            for part in picture.parts("text", kind, step):
                for number, letter in enumerate(part.text):
                    column = round((float(part.get("x")) - 86) / 8.4) + width_of(part.text[:number])
                    found[round(float(part.get("y")) - tops[step]), column] = letter
        return {place: letter for place, letter in found.items() if letter != " "}

    last = letters(3)
    for step in (1, 2):
        assert letters(step).items() < last.items()
    assert len({line for line, _ in last}) >= 4
    assert max(column for _, column in last) <= 16


@pytest.mark.parametrize(
    ("texts", "columns", "expected"),
    [
        (["one", " two", " three"], 8, [(0, 0, 3, 0), (0, 3, 4, 1), (1, 0, 5, 0)]),
        (list("ab cd"), 4, [(0, 0, 1, 0), (0, 1, 1, 0), (0, 2, 1, 0), (1, 0, 1, 0), (1, 1, 1, 0)]),
        (["ab", "", " cd"], 4, [(0, 0, 2, 0), (0, 2, 0, 0), (1, 0, 2, 0)]),
        (["abc", "def"], 4, [(0, 0, 3, 0), (1, 0, 3, 0)]),  # a word longer than a line
        (["abcdef", " g"], 4, [(0, 0, 6, 0), (1, 0, 1, 0)]),  # a token longer than a line
    ],
)
def test_lines_break_before_words(texts, columns, expected):
    assert places(texts, [width_of(text) for text in texts], columns) == expected


def test_the_same_seed_makes_the_same_picture(folder):
    def drawn(seed):
        options = {
            "prompt": "ab[MASK]d",
            "max_new_tokens": 6,
            "max_denoising_steps": 4,
            "num_candidates": 3,
        }
        return make_picture(str(folder), seed=seed, **options)

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert Picture(drawn(0)).states()["state-0"] == "ab░d░░░░░░"


def test_a_text_is_as_long_as_the_model_allows_unless_its_length_is_given(folder):
    longest = EDLMForMaskedDiffusion.from_pretrained(folder).config.max_position_embeddings
    picture = Picture(make_picture(str(folder), prompt="ab", max_denoising_steps=2))
    assert len(picture.states()["state-0"]) == longest - 1  # the start token is not shown

    picture = Picture(make_picture(str(folder), max_new_tokens=3, max_denoising_steps=2))
    assert picture.states()["state-0"] == "░░░"


def test_what_cannot_be_drawn_is_refused_with_advice():
    output = written_output()
    with pytest.raises(ValueError, match="columns is 15, but a line needs at least 16"):
        generation_picture(output, TOKENIZER, columns=15)
    with pytest.raises(ValueError, match="most_states is 1, but a picture needs 2 or more"):
        generation_picture(output, TOKENIZER, most_states=1)
    with pytest.raises(ValueError, match="has no history"):
        generation_picture(EDLMGenerationOutput(sequences=output.sequences), TOKENIZER)

    nothing = EDLMGenerationOutput(sequences=ids("<"), history=(ids("<"),))
    with pytest.raises(ValueError, match="no text to draw: give a prompt"):
        generation_picture(nothing, TOKENIZER)


def test_command_writes_the_picture(folder, tmp_path):
    path = tmp_path / "steps.svg"
    command = [
        "picture",
        "--model",
        str(folder),
        "--prompt",
        "ab",
        "--max-new-tokens",
        "5",
        "--max-denoising-steps",
        "3",
    ]
    command += ["--num-candidates", "2", "--device", "cpu", "--json", "--output"]
    result = CliRunner().invoke(app, [*command, str(path)])
    assert result.exit_code == 0, result.output

    assert json.loads(result.stdout) == {"output": str(path), "bytes": path.stat().st_size}
    picture = Picture(path.read_text(encoding="utf-8"))
    assert list(picture.states()) == ["state-0", "state-1", "state-2", "state-3"]
    assert picture.states()["state-0"] == "ab░░░░░"
    assert len(picture.parts("rect", "taken")) == 4  # three steps and the legend
    assert "animation" not in path.read_text(encoding="utf-8")

    result = CliRunner().invoke(app, [*command, str(path), "--animate"])
    assert result.exit_code == 0, result.output
    assert "animation: show" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--output", "steps.png"], "must end with .svg"),
        (["--output", "none/steps.svg"], "There is no folder none"),
        (["--output", "steps.svg", "--states", "1"], "--states"),
        (["--output", "steps.svg", "--columns", "8"], "--columns"),
        (["--output", "steps.svg", "--sampler", "magic"], "must be one of ancestral"),
    ],
)
def test_command_refuses_wrong_options(arguments, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["picture", "--model", "none", *arguments])
    assert result.exit_code != 0
    assert advice in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
