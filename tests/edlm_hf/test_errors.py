"""Commands that fail: exit codes, and one line that names what was wrong."""

import pytest
import torch
from command_line import call, refused

from edlm_hf.errors import writing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate",), "Missing option '--model'"),
        (("generate", "--model", "m", "--num-return-sequences", 0), "'--num-return-sequences'"),
        (("generate", "--model", "m", "--seed", 10**30), "'--seed'"),
        (("generate", "--model", "m", "--max-denoising-steps", -3), "'--max-denoising-steps'"),
        (("generate", "--model", "m", "--energy-window", 2), "'--energy-window'"),
        (("generate", "--model", "m", "--device", "abacus"), "There is no device 'abacus' here"),
        (("generate", "--model", "m", "--device", "cpu:7"), "There is no device 'cpu:7' here"),
        (("demo", "--max-denoising-steps", 0), "'--max-denoising-steps'"),
        (
            ("benchmark", "speed", "--output", "o", "--max-denoising-steps", "4,x"),
            "'4,x' is not a list of whole numbers like 16,64",
        ),
        (("evaluate", "--model", "m", "--dataset", "d", "--num-steps", "many"), "'--num-steps'"),
        (("generate", "--model", "m", "--sampler-option", "distance"), "'distance' is not of the form NAME=VALUE"),
        (("write",), "No such command 'write'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, words):
    refused(call(*arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--model", "{}/nothing"), "nothing"),
        (("generate", "--model", "./nothing"), "There is no folder ./nothing"),
        (("generate", "--model", "../a/b"), "a checkpoint that ships: edlm-books"),
        (("generate", "--model", "edlm-books-ar"), "Use MDLMForCausalLM"),
        (("generate", "--model", "{}", "--prompt", "ab", "--max-new-tokens", 99), "99 new ones are more than"),
        (("generate", "--model", "{}/nothing", "--sampler", "gibbs"), "must be one of ancestral, first_hitting"),
        (("generate", "--model", "{}", "--sampler", "spaced", "--sampler-option", "eta=1"), "'spaced' has no eta"),
        (("generate", "--model", "{}", "--sampler-option", "energy_window=0"), "No sampler has energy_window"),
        (("evaluate", "--model", "{}/nothing", "--dataset", "text8"), "nothing"),
        (("evaluate", "--model", "{}", "--dataset", "nothing.txt"), "No corpus 'nothing.txt'"),
        (("convert", "{}/nothing.ckpt", "{}/out"), "nothing.ckpt"),
        (("push", "{}/nothing", "me/x"), "no folder with a model"),
        (("benchmark", "speed", "--output", "{}/out", "--repeats", 0), "repeats"),
        (("benchmark", "quality", "--output", "{}/out", "--model", "{}/nothing", "--dataset", "text8"), "nothing"),
        (
            ("train-energy", "--dataset", "d", "--denoiser", "{}/nothing", "--use_cpu", "--output_dir", "{}/out"),
            "nothing",
        ),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) if isinstance(value, tuple) else "",
)
def test_failures_are_one_line_and_exit_code_1(denoiser_folder, arguments, words):
    result = call(*(str(x).format(denoiser_folder) for x in arguments))
    name = " ".join(arguments[: 2 if arguments[0] == "benchmark" else 1])
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and not result.stdout, result.output
    assert last.startswith(f"edlm {name}: ") and words in last and "Traceback" not in result.stderr


def test_of_several_processes_one_tells_the_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    result = call("convert", tmp_path / "nothing.ckpt", tmp_path / "out")
    assert result.exit_code == 1 and not result.output


def test_mistakes_of_the_code_are_not_hidden(monkeypatch):
    def broken(**options):
        raise RuntimeError("a mistake")

    monkeypatch.setattr("edlm_hf.demo.run_demo", broken)
    result = call("demo")
    assert result.exit_code == 1 and "a mistake" in str(result.exception) and not result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line(monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr("edlm_hf.demo.run_demo", fail)
    told = call("demo")
    assert told.exit_code == 1 and told.stderr.startswith("edlm demo: There is not enough memory: ")
    assert len(told.stderr.splitlines()) == 1


def test_an_interruption_is_exit_code_130(monkeypatch):
    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edlm_hf.demo.run_demo", interrupt)
    told = call("demo")
    assert told.exit_code == 130 and told.stderr == "edlm demo: interrupted.\n"


def test_a_package_that_an_option_needs_is_named(tmp_path, folders):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat " * 20)
    small = "--dataset", text, "--style", "crop", "--use_cpu", "--disable_tqdm", "true", "--output_dir", tmp_path / "o"
    told = call("train-denoiser", "--model", folders["mdlm"], *small, "--report_to", "clearml")
    assert told.exit_code == 1 and "clearml" in told.stderr.splitlines()[-1], (told.stderr, told.exception)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 27200 vs 27092"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_full_disk_is_named_whatever_the_library_says(tmp_path, error):
    with pytest.raises(OSError, match=rf"{tmp_path}/new cannot be written: .* kB of its disk are free.*Make room"):
        with writing(tmp_path / "new"):
            raise error
    with pytest.raises(RuntimeError, match="a mistake"):
        with writing(tmp_path):
            raise RuntimeError("a mistake")
