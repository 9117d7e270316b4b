"""Two processes (gloo, CPU) do what one process does with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch
from program import start
from published import tiny_causal, tiny_config, tiny_denoiser
from python_path import python_path
from training import arguments, rows_with_prompts

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, h_profile, nelbo
from edlm_hf.processes import disconnect
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import (
    AutoregressiveTrainer,
    DraftArguments,
    DraftTrainer,
    EnergyArguments,
    EnergyTrainer,
    MaskedDiffusionTrainer,
)
from edlm_hf.training.trainer_denoiser import MaskedDiffusionArguments


def runs(folder, rows: int, steps: int) -> dict[str, list[dict]]:
    """What five runs of three steps log, each followed by an evaluation of eleven rows, all of unequal length.

    `rows` of a process in each of `steps`, and that many in a batch of the evaluation.
    """
    logs = {}
    options = {"max_steps": 3, "per_device_train_batch_size": rows, "per_device_eval_batch_size": rows}
    options["gradient_accumulation_steps"] = steps
    training, evaluation = rows_with_prompts(32), rows_with_prompts(11)
    torch.manual_seed(0)
    energy = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(), energy_type="nce", energy_weights="shared", energy_adapter_rank=2
    )
    reads_target = partial(DraftTrainer, target=tiny_causal())

    for name, trainer_class, args_class, model in (
        ("denoiser", MaskedDiffusionTrainer, MaskedDiffusionArguments, tiny_denoiser()),
        ("autoregressive", AutoregressiveTrainer, MaskedDiffusionArguments, tiny_causal()),
        ("energy", EnergyTrainer, EnergyArguments, energy),
        ("drafts", DraftTrainer, DraftArguments, tiny_denoiser(draft_width=2)),
        ("first draft", reads_target, DraftArguments, tiny_denoiser(draft_width=2, draft_target_dim=16)),
    ):
        args = arguments(folder, args_class, **options)
        trainer = trainer_class(model, args, train_dataset=training, eval_dataset=evaluation)
        trainer.train()
        trainer.evaluate()
        logs[name] = trainer.state.log_history

    return logs


def likelihoods() -> dict[str, list[float]]:
    """Nats of seven texts of different length, and h(t), with the work shared by the processes."""
    texts = [[1, 2, 3, 4, 5, 6][: 2 + i % 5] for i in range(7)]
    options = {"batch_size": 3, "distributed": True}
    found = nelbo(tiny_denoiser(), texts, num_samples=2, **options), autoregressive_nll(tiny_causal(), texts, **options)
    profile = h_profile(tiny_denoiser(), texts, times=(0.3, 1.0), **options)
    return {
        "nats": [x for estimate in found for x in estimate.sequence_nats],
        "h": [x for estimate in profile.entropies for x in (estimate.value, estimate.standard_error)],
    }


def rendezvous() -> list[dict[str, str]]:
    """The environments of two processes that find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    shared |= {"PYTHONPATH": python_path()}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def test_two_processes_have_the_losses_of_one(tmp_path):
    tokenizer = text8_tokenizer(12, start_token=False)
    MDLMForMaskedLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in rendezvous()
    ]
    one = runs(tmp_path / "one", rows=8, steps=1)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-4000:] for text in outputs)

    two = json.loads((tmp_path / "two.json").read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums in another order differ in the last bit
    assert two.pop("likelihoods") == [likelihoods()] * 2

    torch.set_num_threads(threads)
    texts = two.pop("texts")
    assert len(texts) == 5 == len(set(texts)) and all(len(text) == 12 for text in texts)

    timing = ("runtime", "per_second", "total_flos")
    for name, entries in one.items():
        assert len(entries) == len(two[name]) == 5
        for ours, theirs in zip(two[name], entries, strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours:
                if not key.endswith(timing):
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), (name, key)


AT_THE_END = """
def tell():
    import json
    from pathlib import Path
    import torch
    from edlm_hf.processes import rank_and_world_size
    threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    found = [rank_and_world_size()[1], torch.distributed.is_initialized(), [name for name in threads if "gloo" in name]]
    print(json.dumps(found))

import atexit
atexit.register(tell)
"""


def test_processes_of_the_program_part_at_its_end(tmp_path):
    text, sizes = tmp_path / "text.txt", {"hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "length": 8}
    text.write_text("the cat sat on a mat " * 9)
    data = {"dataset": text, "eval_dataset": text, "normalize_text8": True, "style": "crop"}
    options = {"output_dir": tmp_path / "out", "max_steps": 2, "use_cpu": True, "report_to": "none"}
    options |= sizes | data | {"disable_tqdm": True}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    programs = [
        start("train-denoiser", *flags, before=AT_THE_END, env=environment | cache, **piped)
        for environment in rendezvous()
    ]

    for program, (out, err) in [(program, program.communicate()) for program in programs]:
        assert program.returncode == 0, err[-4000:]
        assert json.loads(out.splitlines()[-1]) == [2, False, []]
        assert ("'eval_loss'" in err) == (program is programs[0]) and "Tokenizing" not in err


if __name__ == "__main__":
    from pathlib import Path

    from accelerate.utils import gather_object
    from typer.testing import CliRunner

    home = Path(sys.argv[1])
    logs = runs(home / "two", rows=2, steps=2) | {"likelihoods": gather_object([likelihoods()])}
    arguments = (
        "generate",
        "--model",
        str(home),
        "--max-new-tokens",
        "12",
        "--max-denoising-steps",
        "2",
        "--num-return-sequences",
        "5",
    )
    result = CliRunner().invoke(app, [*arguments, "--seed", "0", "--batch-size", "2", "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    if os.environ["RANK"] == "0":
        logs["texts"] = json.loads(result.stdout)
        (home / "two.json").write_text(json.dumps(logs))
    elif result.stdout:
        raise AssertionError("The second process prints too.")
    disconnect()
