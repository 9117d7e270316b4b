"""The texts of a training command: their tokenizer and blocks, and the part that is held out for evaluation."""

import pytest
import yaml
from command_line import call, result_of
from training_commands import CLASSES
from transformers import AutoModelForMaskedLM, AutoTokenizer

from edlm_hf.commands import train
from edlm_hf.commands.training_data import choose_tokenizer, load_sets
from edlm_hf.commands.training_recipe import parse


def test_blocks_and_tokenizer_are_those_of_the_model_to_start_from(tmp_path, recipe):
    file = tmp_path / "short.yaml"
    text = {
        "dataset": str(tmp_path / "train.txt"),
        "style": "crop",
        "output_dir": str(tmp_path / "short"),
    }
    recipe("denoiser")  # the text
    file.write_text(
        yaml.safe_dump(
            text
            | {
                "max_steps": 1,
                "length": 32,
                "use_cpu": True,
                "report_to": "none",
            }
        )
    )

    small = "--per_device_train_batch_size", 4, "--eval_blocks", 2, "--ema_decay", 0, "--json"
    for name in ("denoiser", "model"):
        made = result_of(call("train-energy", file, f"--{name}", "edlm-books", "--output_dir", tmp_path / name, *small))
        assert made["steps"] == 1
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        assert tokenizer.mask_token_id == model.config.mask_token_id == 4095

    wrong = call("train-energy", file, "--denoiser", "edlm-books", "--tokenizer", "text8", "--style", "wrap")
    assert wrong.exit_code == 1 and "has id 27, but the model masks with id 4095" in wrong.stderr
    both = call("train-energy", file, "--denoiser", "edlm-books", "--model", "edlm-books")
    assert both.exit_code == 1 and "either denoiser" in both.stderr


def test_the_last_twentieth_of_a_file_is_for_evaluation_unless_another_is_given(tmp_path, recipe):
    file = recipe("denoiser", eval_dataset=None, eval_blocks=None)
    data, *_ = parse(train.train_denoiser, CLASSES["denoiser"][1], [file])
    training, held_out = load_sets(data, choose_tokenizer(data, None))
    data.eval_dataset = data.dataset
    whole, again = load_sets(data, choose_tokenizer(data, None))
    assert len(held_out) == len(whole) // 20 > 0
    assert len(training) + len(held_out) == len(whole) == len(again)
    assert (held_out[0]["input_ids"] == whole[len(training)]["input_ids"]).all()

    data.eval_dataset, data.streaming = None, True
    with pytest.raises(ValueError, match="nothing to evaluate on: give --eval_dataset"):
        load_sets(data, choose_tokenizer(data, None))
    assert call("train-denoiser", file, "--length", 0).exit_code == 1


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train",), None),
    ],
)
def test_a_folder_is_evaluated_on_validation_then_test_then_its_last_rows(tmp_path, recipe, names, split):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / f"{name}.txt").write_text("abc"[number] * 20 * 16)

    file = recipe("denoiser", dataset=str(folder), eval_dataset=None, eval_blocks=None)
    data, *_ = parse(train.train_denoiser, CLASSES["denoiser"][1], [file])
    tokenizer = choose_tokenizer(data, None)
    training, held_out = load_sets(data, tokenizer)
    letters = {"validation": "b", "test": "abc"[len(names) - 1], None: "a"}
    (letter,) = set(tokenizer.decode(held_out[0]["input_ids"][1:]).replace(" ", ""))
    assert letter == letters[split]
    assert (len(held_out) == 1) == (split is None)


def test_a_split_that_plain_files_do_not_have_is_refused(recipe):
    file = recipe("denoiser", eval_dataset=None)
    result = call("train-denoiser", file, "--eval_split", "nosuch")
    assert result.exit_code == 1 and "have no splits" in result.stderr
