"""Text shown while it forms: in a notebook output, in a terminal, and in neither."""

import io
import os
import pty
import subprocess
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from published import tiny_config, tiny_denoiser
from rich.console import Console

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.streaming import (
    NotebookDiffusionStreamer,
    StepStreamer,
    StreamedCall,
    TerminalDiffusionStreamer,
    diffusion_streamer,
)
from edlm_hf.tokenization import text8_tokenizer

TOKENIZER = text8_tokenizer(64)
MASK = TOKENIZER.mask_token_id


def ids(text):
    """Token ids (N,), masks for underscores."""
    return torch.tensor([MASK if letter == "_" else TOKENIZER.convert_tokens_to_ids(letter) for letter in text])


class FakeIPython:
    """Outputs of a cell as lists of what each showed, one after the other."""

    def __init__(self, monkeypatch, kernel=True):
        self.outputs = []
        module, display_module = ModuleType("IPython"), ModuleType("IPython.display")
        module.display, display_module.display = display_module, self.display
        module.get_ipython = lambda: SimpleNamespace(kernel=object()) if kernel else SimpleNamespace()
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", display_module)

    def display(self, data, raw=False, display_id=None):
        assert raw and display_id is True
        shown = [data]
        self.outputs.append(shown)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    def texts(self, output=0):
        return [data["text/plain"] for data in self.outputs[output]]


def stream(streamer):
    """A prompt, two drafts of a block, the block, a draft and the text of the next block."""
    streamer.put(ids("the "))
    streamer.put_draft(ids("c_____"))
    streamer.put_draft(ids("cat___"))
    streamer.put(ids("cat"))
    streamer.put_draft(ids(" s_"))
    streamer.put(ids(" sa"))
    streamer.end()


def test_notebook_output_is_updated_in_place(monkeypatch):
    ipython = FakeIPython(monkeypatch)
    streamer = NotebookDiffusionStreamer(TOKENIZER)
    stream(streamer)
    assert len(ipython.outputs) == 1

    shown = ["the ", "the c░░░░░", "the cat░░░", "the cat", "the cat s░", "the cat sa", "the cat sa"]
    assert ipython.texts() == shown
    assert 'the <span style="opacity: 0.6">cat░░░</span>' in ipython.outputs[0][2]["text/html"]

    stream(streamer)
    assert ipython.texts(1) == shown


def test_notebook_text_is_escaped(monkeypatch):
    ipython = FakeIPython(monkeypatch)
    streamer = NotebookDiffusionStreamer(TOKENIZER, mask_symbol="<&>")
    streamer.put_draft(ids("a_"))
    assert "a&lt;&amp;&gt;" in ipython.outputs[0][0]["text/html"] and ipython.texts() == ["a<&>"]


def test_notebook_streamer_without_ipython_is_an_error_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match="pip install ipython"):
        NotebookDiffusionStreamer(TOKENIZER)


def test_terminal_drafts_replace_each_other_and_the_text_stays():
    screen = io.StringIO()
    stream(
        TerminalDiffusionStreamer(
            TOKENIZER,
            console=Console(file=screen, force_terminal=True, width=4),
        )
    )
    written = screen.getvalue()
    assert screen_after(written, width=4)[:3] == ["the ", "cat ", "sa"]
    assert "░" in written and "░" not in "".join(screen_after(written, width=4))


def screen_after(written, width):
    """The lines of an endless terminal after the control sequences that rich uses."""
    lines, row, column, rest = [""], 0, 0, written
    while rest:
        if rest.startswith("\x1b["):
            end = next(i for i, letter in enumerate(rest[2:], 2) if letter.isalpha())
            number, kind, rest = rest[2:end], rest[end], rest[end + 1 :]
            if kind == "A":
                row -= int(number or 1)
            elif kind == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            continue

        letter, rest = rest[0], rest[1:]
        if letter == "\r":
            column = 0
        elif letter == "\n" or column == width:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))

        if letter not in "\r\n":
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1

    return lines


def test_file_gets_the_finished_text_only(capsys):
    stream(TerminalDiffusionStreamer(TOKENIZER))
    assert capsys.readouterr().out == "the cat sa\n"
    stream(TerminalDiffusionStreamer(TOKENIZER, keep=False))
    assert capsys.readouterr().out == ""


def test_streamer_fits_the_place(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert type(diffusion_streamer(TOKENIZER)) is TerminalDiffusionStreamer
    FakeIPython(monkeypatch, kernel=False)
    assert type(diffusion_streamer(TOKENIZER)) is TerminalDiffusionStreamer
    FakeIPython(monkeypatch)
    streamer = diffusion_streamer(TOKENIZER, mask_symbol="?")
    assert type(streamer) is NotebookDiffusionStreamer and streamer.mask_symbol == "?"


def test_prompt_and_special_tokens_are_left_out_on_request(monkeypatch):
    ipython, start = FakeIPython(monkeypatch), torch.tensor([TOKENIZER.bos_token_id])
    stream(NotebookDiffusionStreamer(TOKENIZER, skip_prompt=True))
    assert ipython.texts()[-1] == "cat sa"
    for skip, shown in ((True, "a"), (False, "<s>a")):
        streamer = NotebookDiffusionStreamer(TOKENIZER, skip_special_tokens=skip)
        streamer.put(torch.cat([start, ids("a")]).unsqueeze(0))
        assert ipython.texts(-1) == [shown]


def test_mask_may_be_unknown_to_the_tokenizer(monkeypatch):
    ipython, tokenizer = FakeIPython(monkeypatch), text8_tokenizer(64)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        NotebookDiffusionStreamer(tokenizer)
    streamer = NotebookDiffusionStreamer(tokenizer, mask_token_id=99)
    streamer.put_draft(torch.tensor([1, 99, 99, 2, 99]))
    assert ipython.texts() == ["a░░b░"]


def test_more_than_one_row_is_refused(monkeypatch):
    FakeIPython(monkeypatch)
    with pytest.raises(ValueError, match="2 rows were streamed"):
        NotebookDiffusionStreamer(TOKENIZER).put(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("block_length", [None, 4])
def test_generate_streams_what_it_returns(monkeypatch, block_length):
    ipython = FakeIPython(monkeypatch)
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(vocab_size=len(TOKENIZER)))
    tokens = model.generate(
        ids("ab").unsqueeze(0),
        max_new_tokens=8,
        block_length=block_length,
        max_denoising_steps=3,
        streamer=NotebookDiffusionStreamer(TOKENIZER, skip_special_tokens=False),
        generator=torch.Generator().manual_seed(0),
    )
    assert ipython.texts()[0] == "ab" and ipython.texts()[-1] == TOKENIZER.decode(tokens[0])

    drafts = [text for text in ipython.texts() if "░" in text]
    assert drafts and all(text.startswith("ab") for text in drafts)


def test_steps_of_many_texts_and_calls_are_counted():
    told = []
    model, streamer = EDLMForMaskedDiffusion.from_components(tiny_denoiser()), StepStreamer(told.append)
    for _ in range(2):
        model.generate(batch_size=3, max_new_tokens=5, max_denoising_steps=4, streamer=streamer)
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("saved", [{}, {"block_length": 2}, {"sampler": "first_hitting"}, {"max_denoising_steps": 3}])
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 5},
        {"input_ids": torch.tensor([[1, 12, 2]]), "max_new_tokens": 5, "max_denoising_steps": 4},
        {"input_ids": torch.tensor([[1, 12, 12]]), "block_length": 3},
    ],
)
def test_the_number_of_steps_is_known_before(saved, options):
    told, model = [], tiny_denoiser()
    model.generation_config.update(**saved)
    model.generate(**options, streamer=StepStreamer(told.append))
    assert model.count_steps(**options) == len(told)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_command_shows_the_text_while_it_forms_and_leaves_it(tmp_path):
    tokenizer = text8_tokenizer(12, start_token=False)
    MDLMForMaskedLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-c", "from edlm_hf.cli import app; app()", "generate", "--model", str(tmp_path)]
    command += ["--seed", "1", "--prompt", "ab[MASK]d", "--max-new-tokens", "3", "--max-denoising-steps", "4"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)

    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # Linux: the other end is closed
        pass

    os.close(ours)
    assert process.wait() == 0
    shown = written.decode().replace("\r\n", "\n")
    piped = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout
    assert "░" in shown and "░" not in piped and piped.startswith("ab") and piped[3] == "d"
    assert "".join(screen_after(shown, width=80)).strip() == piped.strip()


@pytest.mark.parametrize("streamer_class", [NotebookDiffusionStreamer, TerminalDiffusionStreamer])
def test_nothing_is_drafted_after_the_end_of_the_text(monkeypatch, streamer_class):
    shown = []

    class Shown(streamer_class):
        def show(self, finished, draft):
            shown.append(finished + draft)

    FakeIPython(monkeypatch)
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(
            vocab_size=len(TOKENIZER),
            model_length=40,
        )
    )
    options = {"max_new_tokens": 12, "block_length": 2, "max_denoising_steps": 2}
    free = model.generate(ids("the ").unsqueeze(0), generator=torch.Generator().manual_seed(0), **options)[0, 4:]

    for end in sorted(set(free.tolist())):
        shown.clear()
        tokens = model.generate(
            ids("the ").unsqueeze(0),
            streamer=Shown(TOKENIZER, skip_special_tokens=False),
            generator=torch.Generator().manual_seed(0),
            eos_token_id=end,
            pad_token_id=MASK - 1,
            **options,
        )
        length = 4 + free.tolist().index(end) + 1
        assert (tokens[0, length:] == MASK - 1).all() and tokens[0, length - 1] == end

        drafts = [text for text in shown if "░" in text]
        assert all(text.startswith("the ") and "the the " not in text for text in drafts)
        assert len(shown) == 1 + 3 * -(-(length - 4) // 2) + (streamer_class is NotebookDiffusionStreamer)


def test_a_call_is_read_while_it_forms():
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(vocab_size=len(TOKENIZER)))
    prompt = ids("the ")[None]
    settings = {"max_new_tokens": 8, "max_denoising_steps": 4}

    def generator():
        return torch.Generator().manual_seed(0)

    call = StreamedCall(partial(model.generate, prompt, generator=generator(), **settings), TOKENIZER)
    shown = list(call)
    assert torch.equal(call.result(), model.generate(prompt, generator=generator(), **settings))
    assert shown[0] == ("the ", "") and shown[-1] == (TOKENIZER.decode(call.result()[0]), "")

    num_masks = [draft.count("░") for _, draft in shown[1:-1]]
    assert num_masks == sorted(num_masks, reverse=True) and num_masks[0] > 0


def test_an_error_of_a_call_reaches_its_reader():
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(vocab_size=len(TOKENIZER)))
    call = StreamedCall(
        partial(model.generate, ids("the ")[None], max_new_tokens=8, top_p=2.0),
        TOKENIZER,
    )
    with pytest.raises(ValueError, match="top_p"):
        list(call)


def test_a_reader_may_leave_early():
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(vocab_size=len(TOKENIZER)))
    call = StreamedCall(partial(model.generate, ids("the ")[None], max_new_tokens=8), TOKENIZER)
    reader = iter(call)
    next(reader)
    reader.close()
    assert call.result().shape == (1, 12)


def test_a_text_of_no_tokens_is_shown_as_such(capsys):
    streamer = TerminalDiffusionStreamer(TOKENIZER)
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(vocab_size=len(TOKENIZER)))
    model.generate(torch.zeros(1, 0, dtype=torch.long), streamer=streamer)
    assert capsys.readouterr().out == "\n"


def test_a_great_many_steps_are_told_where_something_happens():
    told = []
    model, streamer = EDLMForMaskedDiffusion.from_components(tiny_denoiser()), StepStreamer(told.append)
    for _ in range(2):
        model.generate(max_new_tokens=6, block_length=3, max_denoising_steps=10**8, streamer=streamer)
    assert told == sorted(set(told)) and told[-1] == 4 * 10**8 and 12 < len(told) < 32


def test_rows_that_have_ended_count_their_steps():
    """A bar comes to its end though the text that is shown ends early."""
    told, model = [], tiny_denoiser()
    options = {
        "max_new_tokens": 12,
        "block_length": 2,
        "max_denoising_steps": 3,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    model.generate(
        **options,
        streamer=StepStreamer(told.append),
        generator=torch.Generator().manual_seed(1),
    )
    assert told == list(range(1, model.count_steps(**options) + 1))


def fail(*arguments):
    raise RuntimeError("an accident")


def test_a_terminal_is_given_back_when_the_call_fails(monkeypatch):
    tokenizer, model = text8_tokenizer(12), tiny_denoiser(vocab_size=len(text8_tokenizer(12)))
    output = io.StringIO()
    streamer = TerminalDiffusionStreamer(tokenizer, console=Console(file=output, force_terminal=True))
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    standard_output = sys.stdout

    with pytest.raises(RuntimeError, match="an accident"):
        model.generate(ids, max_new_tokens=3, streamer=streamer, callback_on_step_end=fail)
    assert streamer.live is None and sys.stdout is standard_output
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h") == 1


def test_a_streamer_begins_anew_after_a_call_that_failed():
    tokenizer, model = text8_tokenizer(12), tiny_denoiser(vocab_size=len(text8_tokenizer(12)))
    output = io.StringIO()
    streamer = TerminalDiffusionStreamer(tokenizer, console=Console(file=output, force_terminal=False))
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    with pytest.raises(RuntimeError, match="an accident"):
        model.generate(ids, max_new_tokens=3, streamer=streamer, callback_on_step_end=fail)
    rows = model.generate(ids, max_new_tokens=3, streamer=streamer)
    assert output.getvalue().strip("\n") == tokenizer.decode(rows[0], skip_special_tokens=True)


def test_a_call_that_was_left_early_is_read_anew():
    tokenizer, model = text8_tokenizer(12), tiny_denoiser(vocab_size=len(text8_tokenizer(12)))
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    call = StreamedCall(partial(model.generate, ids, max_new_tokens=3), tokenizer)
    with pytest.raises(ValueError, match="read its text first"):
        call.result()

    for _ in call:
        break
    *_, (text, draft) = call
    assert (text, draft) == (tokenizer.decode(call.result()[0], skip_special_tokens=True), "")
