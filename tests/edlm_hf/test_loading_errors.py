"""Files of models that cannot be read: one sentence names the file and what is wrong with it."""

import logging
from pathlib import Path

import pytest
from command_line import call, lines_of
from model_folders import as_folder, change, cut, put, remove
from transformers import AutoTokenizer

from edlm_hf.errors import explanation
from edlm_hf.loading import load_causal, load_masked, load_with_tokenizer

DAMAGES = {
    "weights cut": (cut("model.safetensors"), "model.safetensors is damaged or cut: it has"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors is empty"),
    "weights longer": (put("model.safetensors", b"\x02" + bytes(7) + b"{}more"), "it has 14 bytes, but needs 10"),
    "weights of nothing": (put("model.safetensors", b"abc"), "too few for its header"),
    "weights a pointer": (put("model.safetensors", b"version https://git-lfs.github.com/spec"), "pointer of Git LFS"),
    "weights a folder": (as_folder("model.safetensors"), "model.safetensors cannot be read"),
    "weights missing": (remove("model.safetensors"), "no file named model.safetensors"),
    "configuration cut": (cut("config.json"), "config.json is damaged: it is not JSON"),
    "configuration a list": (put("config.json", b"[1]"), "does not hold names with values"),
    "configuration nested": (put("config.json", b"[" * 99_999), "config.json is damaged"),
    "configuration missing": (remove("config.json"), "config.json"),
    "type unknown": (change("config.json", model_type="foo", auto_map={}), "foo"),
    "dtype unknown": (change("config.json", dtype="float99"), "The configuration of"),
    "vocabulary a text": (change("config.json", vocab_size="29"), "vocab_size"),
    "heads of another": (change("config.json", n_heads=3, num_attention_heads=3), "multiple"),
    "code a number": (change("config.json", auto_map=5), "The configuration of"),
    "generation cut": (put("generation_config.json", b"{"), "generation_config.json is damaged"),
    "tokenizer cut": (cut("tokenizer.json"), "tokenizer.json is damaged"),
    "tokenizer empty": (put("tokenizer.json", b"{}"), "The tokenizer of"),
    "tokenizer of another kind": (change("tokenizer.json", model={"type": "foo"}), "The tokenizer of"),
    "length a text": (change("tokenizer_config.json", model_max_length="x"), "model_max_length is 'x'"),
    "index without names": (put("model.safetensors.index.json", b"[]"), "index.json is damaged"),
    "an adapter": (lambda f: (remove("config.json")(f), put("adapter_config.json", b"{}")(f)), "is an adapter"),
}


@pytest.mark.parametrize("kind", ["mdlm", "edlm", "bert"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_loaded_is_named_in_one_sentence(damaged, kind, damage, capfd):
    do, words = DAMAGES[damage]
    folder = damaged(kind, do)
    with pytest.raises(ValueError) as error:
        load_with_tokenizer(str(folder))
    line = explanation(error.value)
    assert any(word in line for word in words.split("|")) and str(folder) in line and len(line) < 700, line
    assert "[transformers]" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "values",
    [{"max_new_tokens": "many"}, {"top_k": "x"}, {"eos_token_id": "x"}, {"temperature": -1}, {"sampler": "foo"}],
    ids=str,
)
def test_wrong_values_in_generation_config_are_found_when_it_is_loaded(damaged, values):
    folder = damaged("edlm", change("generation_config.json", **values))
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"{folder}/generation_config.json cannot be used: {name} is "):
        load_masked(str(folder))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mdlm", {"vocab_size": 40, "mask_token_id": 39}),
        ("mdlm", {"hidden_dim": 16}),
        ("edlm", {"cond_dim": 6}),
        ("bert", {"vocab_size": 40}),
        ("bert", {"hidden_size": 16}),
        ("causal", {"model_length": 99, "hidden_dim": 16}),
    ],
)
def test_weights_of_other_sizes_are_named_with_both(damaged, kind, values):
    folder = str(damaged(kind, change("config.json", **values)))
    with pytest.raises(ValueError, match=r"do not fit config.json: [\w.]+ has the shape \(.*\), where the .* says \("):
        load_causal(folder) if kind == "causal" else load_masked(folder)


def test_a_file_in_place_of_a_folder_is_named(folders):
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is a file, but a folder is needed"):
            load_masked(str(folders["mdlm"] / name))


COMMANDS = {
    "generate": ("--model", "{}"),
    "evaluate": ("--model", "{}", "--dataset", "text8"),
    "train-denoiser": ("--model", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-autoregressive": ("--model", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-energy": ("--denoiser", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-drafts": ("--denoiser", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "benchmark quality": ("--model", "{}", "--dataset", "text8", "--output", "{}/out"),
    "push": ("{}", "me/model"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", ["weights cut", "generation cut", "tokenizer cut"])
def test_every_command_fails_in_one_line(damaged, command, damage):
    kind = "causal" if command == "train-autoregressive" else "mdlm"
    folder = damaged(kind, DAMAGES[damage][0])
    told = call(*command.split(), *(argument.format(folder) for argument in COMMANDS[command]))
    lines = lines_of(told)
    assert told.exit_code == 1 and not told.stdout, (told.output, told.exception)
    assert len(lines) == 1 and lines[0].startswith(f"edlm {command}: ") and str(folder) in lines[0], lines


def test_the_traceback_is_there_for_who_asks_for_it(damaged):
    folder = damaged("mdlm", cut("config.json"))
    told = call("generate", "--model", folder, env={"EDLM_TRACEBACK": "1"})
    assert isinstance(told.exception, ValueError)
    assert "config.json is damaged" in str(told.exception)


def test_what_transformers_warns_of_appears_when_loading_went_well(folders, damaged):
    logger, seen = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)

    def warn(folder):
        logger.warning("look at this")
        (Path(folder) / "config.json").read_text()
        return AutoTokenizer.from_pretrained(folder)

    try:
        from edlm_hf.loading import load

        load(warn, str(folders["mdlm"]))
        assert seen == ["look at this"]
        with pytest.raises(ValueError):
            load(warn, str(damaged("mdlm", remove("tokenizer.json"))))
        assert seen == ["look at this"]
    finally:
        logging.getLogger("transformers").removeHandler(handler)
