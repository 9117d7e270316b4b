"""Every kind of bad input that was tried, as lines of code: docs/bad_inputs.md is made of what they are answered.

    python bad_inputs.py ANSWERS.json         # runs all lines, without a network
    python bad_inputs.py ANSWERS.json --page  # and writes the page, as `make bad-inputs` does

A section has a beginning that works and lines that do not. Each line runs by itself, in a folder of its section.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "bad_inputs.md"
INTRODUCTION = """# Bad inputs

What is answered to what cannot work. Every line below runs in the tests, and this page is written from their messages
(`make bad-inputs`). In Python all of them are `ValueError`s. A command of `edlm` prints its message on one line of
stderr, with exit code 1, or 2 for a wrong flag.
"""


@dataclass(frozen=True)
class Section:
    """Lines of code or commands that are refused.

    Args:
        beginning: runs once before them and is shown.
        lines: one per case. commands: they are arguments of `edlm`.
    """

    title: str
    beginning: str
    lines: tuple[str, ...]
    commands: bool = False


MODELS = """import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import edlm_hf

torch.manual_seed(0)
sizes = {"vocab_size": 29, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "model_length": 16}
denoiser = edlm_hf.MDLMForMaskedLM(edlm_hf.MDLMConfig(**sizes)).eval()  # the mask token is 28
causal = edlm_hf.MDLMForCausalLM(edlm_hf.MDLMConfig(**sizes, causal=True)).eval()
model = edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce")
"""
PROMPT = "ids = torch.tensor([[1, 2, 28, 4]])\n"

SECTIONS = (
    Section(
        "Prompts and lengths",
        MODELS + PROMPT,
        (
            "model.generate([[1, 2]])",
            "model.generate(torch.tensor([1, 2]))",
            "model.generate(ids.float())",
            "model.generate(torch.tensor([[1, 29]]))",
            "model.generate(torch.tensor([[-1, 2]]))",
            "model.generate(ids.to('meta'))",
            "model.generate(ids, attention_mask=torch.ones(1, 3))",
            "model.generate(ids, attention_mask=torch.tensor([[1, 1, 0, 1]]))",
            "model.generate(ids, attention_mask=[[1, 1, 1, 1]])",
            "model.generate(ids, attention_mask=torch.full((1, 4), 0.5))",
            "model.generate(ids, batch_size=3)",
            "model.generate(batch_size=0)",
            "model.generate(ids, max_new_tokens=13)",
            "model.generate(ids, max_new_tokens=-1)",
            "model.generate(ids, max_new_tokens=2.5)",
            "model.generate(ids, max_length=3)",
            "model.generate(torch.ones(1, 17, dtype=torch.long))",
            "model.generate(max_length=10**8)",
            "model.generate(ids, max_new_tokens=20, block_length=17)",
            "model.generate(ids, max_new_tokens=4, block_length=0)",
        ),
    ),
    Section(
        "Options of generation",
        MODELS + PROMPT,
        (
            "model.generate(ids, num_beams=2)",
            "model.generate(ids, max_denoising_steps=0)",
            "model.generate(ids, max_denoising_steps='many')",
            "model.generate(ids, num_candidates=0)",
            "model.generate(ids, energy_window=1.5)",
            "model.generate(ids, energy_window=(0.8, 0.2))",
            "model.generate(ids, energy_temperature=0)",
            "model.generate(ids, energy_scope='token')",
            "model.generate(ids, energy_scope='revealed')",
            "model.generate(ids, temperature=0.0)",
            "model.generate(ids, top_k=-1)",
            "model.generate(ids, top_p=1.5)",
            "model.generate(ids, do_sample='no')",
            "model.generate(ids, num_return_sequences=0)",
            "model.generate(ids, eos_token_id=True)",
            "model.generate(ids, eos_token_id='</s>')",
            "model.generate(ids, pad_token_id=28)",
            "model.generate(ids, eos_token_id=28)",
            "model.generate(ids, generation_config={'max_denoising_steps': 4})",
            "model.generate(ids, generator=0)",
            "model.generate(ids, logits_processor=[None])",
            "model.generate(ids, logits_processor=[lambda ids, scores: scores[:, :1]])",
            "model.generate(ids, logits_processor=[lambda ids, scores: scores - float('inf')])",
            "model.generate(ids, stopping_criteria='x')",
            "model.generate(ids, streamer=print)",
            "model.generate(ids, callback_on_step_end=1)",
            "edlm_hf.EDLMGenerationConfig(num_candidates=0)",
        ),
    ),
    Section(
        "Samplers",
        MODELS + PROMPT,
        (
            "model.generate(ids, sampler='gibbs')",
            "model.generate(ids, sampler=3)",
            "model.generate(ids, sampler=edlm_hf.MDLMConfig)",
            "model.generate(ids, sampler='spaced', gamma=0.1)",
            "model.generate(ids, distance=8)",
            "model.generate(ids, sampler='spaced', distance=0)",
            "model.generate(ids, sampler='spaced', distance=2.5)",
            "model.generate(ids, sampler='spaced', score='best')",
            "model.generate(ids, sampler='top_k', score='random')",
            "model.generate(ids, sampler='entropy_bound', gamma=-1)",
            "model.generate(ids, sampler='threshold', threshold=1.5)",
            "model.generate(ids, sampler='threshold', threshold='high')",
            "model.generate(ids, sampler='threshold', fill_up=1)",
            "model.generate(ids, sampler='factor', factor=float('nan'))",
            "model.generate(ids, sampler='dilated', offset='first')",
            "model.generate(ids, sampler='klass', history_length=-1)",
            "model.generate(ids, sampler='remdm', remasking='cycle')",
            "model.generate(ids, sampler='remdm', eta=2)",
            "model.generate(ids, sampler='remdm', remasking_window=(0.8, 0.2))",
            "model.generate(ids, sampler='spaced', corrector_sweeps=-1)",
            "model.generate(ids, sampler='spaced', corrector_sweeps=float('inf'))",
            "model.generate(ids, sampler='spaced', corrector_sweeps='many')",
            "model.generate(ids, sampler='spaced', corrector_positions=0)",
            "model.generate(ids, sampler='edit')",
            "model.generate(ids, sampler='speculative')",
            "model.generate(ids, sampler='speculative', draft_length=0)",
            "model.generate(ids, sampler='speculative', corrector_sweeps=1)",
            "model.generate(ids, sampler='low_confidence', energy_scope='revealed', energy=lambda *given: given[2])",
            "model.generate(ids, sampler=lambda step, proposal: True)",
            "model.generate(ids, sampler=lambda step, proposal: proposal.ids)",
            "model.generate(ids, sampler=lambda step, proposal: proposal.masked[:, :2])",
            "model.generate(ids, sampler=lambda step, proposal: proposal.masked, distance=8)",
            "model.generate(ids, min_p=1.5)",
            "model.generate(ids, guidance_scale=-1)",
        ),
    ),
    Section(
        "Energies",
        MODELS
        + PROMPT
        + "candidates = torch.tensor([[[1, 2, 3, 4], [1, 2, 5, 4]]])\n"
        + "with_ar = edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_scope='revealed')\n",
        (
            "model.generate(ids, energy='low')",
            "model.generate(ids, energy=lambda candidates, noisy, log_probs, mask: torch.zeros(3))",
            "model.generate(ids, energy=lambda candidates, noisy, log_probs, mask: 0.0)",
            "model.generate(ids, energy=lambda candidates, noisy, log_probs, mask: log_probs * float('nan'))",
            "model.generate(ids, energy=lambda candidates, noisy, log_probs, mask: log_probs - float('inf'))",
            "model.generate(ids, energy=lambda candidates, noisy, log_probs, mask: log_probs * 0 + float('inf'))",
            "model.energy(candidates, ids[:, :3])",
            "model.energy(candidates[0], ids)",
            "model.energy(candidates + 1, ids)",
            "model.energy(ids[:, None].repeat(1, 2, 1), ids)",
            "model.energy(candidates, ids, attention_mask=torch.ones(1, 3))",
            "model.energy(candidates, ids, timesteps=torch.zeros(3))",
            "with_ar.generate(max_length=8, max_denoising_steps=2)",
        ),
    ),
    Section(
        "Models of others",
        MODELS
        + """
from edlm_hf.modeling.custom_generate import generate

gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))
tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
bert = BertForMaskedLM(BertConfig(vocab_size=29, **tiny))
combine = edlm_hf.EDLMForMaskedDiffusion.from_components
""",
        (
            "combine(gpt2)",
            "combine(bert)",
            "combine(denoiser, gpt2)",
            "combine(denoiser, bert)",
            "combine(denoiser, causal, energy_type='nce')",
            "combine(denoiser, energy_type='ar')",
            "combine(denoiser, energy_type='low')",
            "combine(denoiser, causal, energy_scope='token')",
            "combine(denoiser, causal, energy_weights='shared')",
            "combine(denoiser, mask_token_id=5)",
            "combine(bert, mask_token_id=40)",
            "combine(denoiser, causal, energy_by_reference=True)",
            "combine(bert, mask_token_id=28, energy_type='nce')",
            "combine(bert, mask_token_id=28, logits_shift=2)",
            "generate(bert, torch.tensor([[1, 2]]))",
            "generate(bert, torch.tensor([[1, 2]]), mask_token_id=28, num_beams=4)",
            "generate(bert, torch.tensor([[1, 2]]), mask_token_id=28, assistant_model=bert)",
            "generate(bert, torch.tensor([[1, 2]]), mask_token_id=28, energy_type='nce')",
        ),
    ),
    Section(
        "Configurations",
        "import edlm_hf\n",
        (
            "edlm_hf.MDLMConfig(vocab_size=0)",
            "edlm_hf.MDLMConfig(vocab_size='29')",
            "edlm_hf.MDLMConfig(hidden_dim=10, n_heads=4)",
            "edlm_hf.MDLMConfig(dropout=1.5)",
            "edlm_hf.MDLMConfig(mask_token_id=60000)",
            "edlm_hf.MDLMConfig(noise_schedule='linear-ish')",
            "edlm_hf.MDLMConfig(noise_schedule_params={'eps': 2.0})",
            "edlm_hf.MDLMConfig(noise_schedule_params={'eps': 'x'})",
            "edlm_hf.MDLMForMaskedLM(edlm_hf.MDLMConfig(causal=True))",
            "edlm_hf.MDLMForCausalLM(edlm_hf.MDLMConfig(causal=False))",
            "edlm_hf.EDLMConfig(energy_type='ar')",
            "edlm_hf.EDLMConfig(energy_weights='shared')",
            "edlm_hf.EDLMConfig(denoiser_config={'model_type': 'my-model'})",
        ),
    ),
    Section(
        "Likelihoods",
        MODELS
        + """
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, h_profile, nelbo, paper_nll, sampler_bound
""",
        (
            "nelbo(model, [])",
            "nelbo(model, [[1, 2, 28]])",
            "nelbo(model, [[1, 2, 29]])",
            "nelbo(model, [[1] * 17])",
            "nelbo(model, [[1, 2]], num_samples=3)",
            "nelbo(model, [[1, 2]], num_samples=0)",
            "nelbo(model, [[1, 2]], num_samples='2')",
            "nelbo(model, [[1, 2]], batch_size=0)",
            "nelbo(model, [[1, 2]], batch_size=2.5)",
            "nelbo(model, [[1, 2]], text_numbers=[0.5])",
            "nelbo(model, [[1, 2]], attention_mask=[1, 1])",
            "nelbo(model, [[1, 2]], attention_mask=[[0.3, 0.9]])",
            "nelbo(model, [[1, 2]]).bits_per('character', 0)",
            "h_profile(model, [[1, 2]], times=0.5)",
            "paper_nll(model, [[1, 2]], log_partition='lower', partition_samples=2.5)",
            "nelbo(model, [[1, 2]], attention_mask=[[0, 0]])",
            "nelbo(model, [[1, 2]], scored=[[True]])",
            "discrete_nelbo(model, [[1, 2]], num_steps=0)",
            "sampler_bound(model, [[1, 2]], num_steps=4, num_candidates=0)",
            "sampler_bound(model, [[1, 2]], num_steps=4, inner_copies=0)",
            "sampler_bound(model, [[1, 2]], num_steps=4, inner_copies=1.5)",
            "sampler_bound(model, [[1, 2]], num_steps=4, sampler='low_confidence')",
            "sampler_bound(model, [[1, 2]], num_steps=4, sampler='edit', num_candidates=1)",
            "sampler_bound(model, [[1, 2]], num_steps=4, sampler='spaced', gamma=0.1)",
            "sampler_bound(model, [[1, 2]], num_steps=4, do_sample=False)",
            "sampler_bound(model, [[1, 2]], num_steps=4, num_beams=4)",
            "autoregressive_nll(model, [[1, 2]])",
            "autoregressive_nll(denoiser, [[1, 2]])",
        ),
    ),
    Section(
        "Training",
        MODELS
        + """
from datasets import Dataset
from edlm_hf.training import EnergyArguments, EnergyTrainer, MaskedDiffusionArguments, MaskedDiffusionTrainer
from transformers import TrainingArguments

def rows(*texts):
    return Dataset.from_list([{"input_ids": list(text)} for text in texts])

quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
args = MaskedDiffusionArguments("out", **quiet)

def train(network, texts, args=args):
    MaskedDiffusionTrainer(network, args, train_dataset=texts).train()
""",
        (
            "train(denoiser, rows([1, 2, 28]))",
            "train(denoiser, rows([1, 2, 29]))",
            "train(denoiser, rows([]))",
            "train(causal, rows([1, 2]))",
            "train(denoiser, rows([1, 2]), TrainingArguments('out', **quiet))",
            "MaskedDiffusionArguments('out', muon=True, fsdp='full_shard', **quiet)",
            "EnergyTrainer(denoiser, EnergyArguments('out', **quiet), train_dataset=rows([1, 2]))",
            "EnergyArguments('out', nce_loss='hinge', **quiet)",
            "EnergyArguments('out', num_negatives=0, **quiet)",
            "MaskedDiffusionArguments('out', **(quiet | {'max_steps': 0}))",
            "MaskedDiffusionArguments('out', lr_scheduler_kwargs=3, **quiet)",
            "train(denoiser, rows([1, 2]), MaskedDiffusionArguments('out', metric_for_best_model='accuracy', **quiet))",
        ),
    ),
    Section(
        "Text",
        """from pathlib import Path

from edlm_hf.data import load_corpus, to_blocks
from edlm_hf.tokenization import text8_tokenizer

tokenizer = text8_tokenizer(16)
Path("latin.txt").write_bytes(b"caf\\xe9 au lait\\n" * 9)
Path("empty.txt").write_text("")
Path("words.txt").write_text("it was a bright cold day in april\\n" * 9)
corpus = load_corpus("words.txt")
""",
        (
            "load_corpus('nothing.txt')",
            "load_corpus('latin.txt')",
            "load_corpus('empty.txt')",
            "load_corpus('words.txt', text_column='content')",
            "load_corpus('words.txt', None)",
            "to_blocks(['a text'], tokenizer, 16)",
            "to_blocks(corpus, None, 16)",
            "to_blocks(corpus, tokenizer, 0)",
            "to_blocks(corpus, tokenizer, 2.5)",
            "to_blocks(corpus, tokenizer, 16, style='cut')",
            "to_blocks(corpus, tokenizer, 100_000, style='crop')",
        ),
    ),
    Section(
        "Files of models",
        MODELS
        + """
import shutil
from pathlib import Path

from edlm_hf.cards import CardFacts
from edlm_hf.conversion import convert_lightning_checkpoint
from transformers import AutoModelForMaskedLM

load = AutoModelForMaskedLM.from_pretrained
model.save_pretrained("whole")
torch.save({"state_dict": {}}, "empty.ckpt")
Path("text.ckpt").write_text("no checkpoint")
""",
        (
            "convert_lightning_checkpoint('text.ckpt', 'new')",
            "convert_lightning_checkpoint('empty.ckpt', 'new')",
            "convert_lightning_checkpoint('empty.ckpt', 'whole')",
            "edlm_hf.MDLMForCausalLM.from_pretrained('whole')",
            "edlm_hf.checkpoint('edlm-novels')",
            "CardFacts(results={'loss': 1.0})",
            "CardFacts(license=['mit'])",
        ),
    ),
    Section(
        "Commands",
        """import json
import shutil
from pathlib import Path

import edlm_hf

def copy(name, config=None, cut=False):
    folder = shutil.copytree(edlm_hf.checkpoint("edlm-books"), name)
    stored = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps(stored | (config or {})))
    if cut:
        weights = Path(folder, "model.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])

copy("cut", cut=True)
copy("unknown-type", config={"model_type": "my-model"})
copy("unknown-dtype", config={"dtype": "float99"})
Path("no-model").mkdir()
Path("words.txt").write_text("it was a bright cold day in april\\n" * 9)
Path("latin.txt").write_bytes(b"caf\\xe9 au lait\\n" * 9)
Path("wrong.yaml").write_text("max_denoising_steps: many\\n")
Path("list.yaml").write_text("dataset: words.txt\\noutput_dir: out\\nmax_steps: [3]\\n")
""",
        (
            "generate",
            "generate --model nothing-here",
            "generate --model no-model",
            "generate --model cut",
            "generate --model unknown-type",
            "generate --model unknown-dtype",
            "generate --model edlm-books --max-denoising-steps 0",
            "generate --model edlm-books --max-new-tokens 9999",
            "generate --model edlm-books --device cuda:77",
            "generate --model edlm-books --config wrong.yaml",
            "generate --model edlm-books --html nowhere/page.html",
            "generate --model edlm-books --sampler gibbs",
            "generate --model edlm-books --sampler spaced --sampler-option distance",
            "generate --model edlm-books --sampler spaced --sampler-option gamma=0.1",
            "generate --model edlm-books --sampler-option energy_window=0.5",
            "evaluate --model edlm-books --dataset nothing.txt",
            "evaluate --model edlm-books --dataset latin.txt",
            "evaluate --model edlm-books --dataset words.txt --metrics loss",
            "evaluate --model edlm-books --dataset words.txt --num-samples 3",
            "evaluate --model edlm-books --dataset words.txt --dtype float99",
            "evaluate --model edlm-books --dataset words.txt --sampler spaced",
            "evaluate --model edlm-books --dataset words.txt --metrics sampler_bound --sampler low_confidence",
            "convert words.txt converted",
            "push no-model user/name",
            "push nothing-here user/name",
            "train-denoiser --dataset words.txt",
            "train-denoiser --dataset words.txt --output_dir out --length 0",
            "train-denoiser --dataset words.txt --output_dir out --colour red",
            "train-denoiser --dataset words.txt --output_dir out --time_limit_minutes -1",
            "train-denoiser --dataset words.txt --output_dir out --resume_from_checkpoint False",
            "train-denoiser list.yaml",
            "train-denoiser --dataset words.txt --output_dir out --model a --from_causal b",
            "train-energy --dataset words.txt --output_dir out",
            "train-energy --dataset words.txt --output_dir out --max_denoising_steps 8 --sampler top_k",
            "train-energy --dataset words.txt --output_dir out --sampler dilated",
            "benchmark speed",
        ),
        commands=True,
    ),
)


@dataclass(frozen=True)
class Answer:
    """What a line was answered: an error's type (or the exit code of a command) and its message."""

    line: str
    kind: str
    message: str


def answers(section: Section) -> list[Answer]:
    """Run the lines of a section. "passes" is the kind of one that does not fail."""
    here, space = Path.cwd(), {}
    run = command if section.commands else statement
    with tempfile.TemporaryDirectory() as folder, quiet():
        os.chdir(folder)
        try:
            exec(section.beginning, space)
            found = [Answer(line, *run(line, space)) for line in section.lines]
        finally:
            os.chdir(here)

    return [replace(answer, message=without_folder(answer.message, folder)) for answer in found]


def statement(line: str, space: dict) -> tuple[str, str]:
    """The type of the error that a line of Python ends in, and its message."""
    try:
        exec(line, space)
    except Exception as error:
        return type(error).__name__, str(error)
    return "passes", ""


def command(line: str, space: dict) -> tuple[str, str]:
    """The exit code of `edlm line`, and its message on stderr."""
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    done = CliRunner().invoke(app, shlex.split(line), prog_name="edlm")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return type(done.exception).__name__, str(done.exception)

    # Left out: the frame around a wrong flag, how the command is used, and progress bars
    lines = [text.strip("│ ") for text in re.split(r"[\r\n]", done.stderr)]
    kept = (text for text in lines if text and not re.match(r"usage:|try |[╭╰]|.*it/s\]|.*examples/s\]", text, re.I))
    return f"exit {done.exit_code}", " ".join(kept)


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def without_folder(text: str, folder: str) -> str:
    """One line that names nothing of this machine."""
    for name in {folder, os.path.realpath(folder)}:
        text = text.replace(f"{name}/", "").replace(name, ".")
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


def page(found: dict[str, list[dict]]) -> str:
    """The page as Markdown, from the answers of every section."""
    parts = [INTRODUCTION]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n\n```python\n{section.beginning.strip()}\n```\n")
        rows = ["| given | answer |", "|---|---|"]
        for answer in found[section.title]:
            line = f"edlm {answer['line']}" if section.commands else answer["line"]
            code = f" ({answer['kind']})" if section.commands else ""
            rows.append(f"| `{in_cell(line)}` | {in_cell(answer['message'], markup=True)}{code} |")
        parts.append("\n".join(rows) + "\n")

    return "\n".join(parts)


def in_cell(text: str, markup: bool = False) -> str:
    """Text inside a cell of a table. Where Markdown is `markup`, what would be read as such is escaped."""
    text = text.replace("|", "\\|")
    return re.sub(r"([*<`])", r"\\\1", text) if markup else text


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("answers", type=Path)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {section.title: [asdict(answer) for answer in answers(section)] for section in SECTIONS}
    options.answers.write_text(json.dumps(found))
    if options.page:
        PAGE.write_text(page(found), encoding="utf-8")
