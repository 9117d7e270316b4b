"""The texts of `edlm generate`, made in batches."""

import sys

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.commands.generate import TextOptions
from edlm_hf.commands.progress import running
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.streaming import StepStreamer, TerminalDiffusionStreamer
from edlm_hf.tokenization import num_end_tokens
from edlm_hf.visualization import Trajectory, trajectories


def generate_texts(
    text: TextOptions,
    options: dict,
    process: int,
    processes: int,
    as_json: bool,
) -> tuple[list[str], list[Trajectory]]:
    """The share of one process in the texts. With a web page to write, how each of them came about too.

    Args:
        options: of `generate()`.
        process, processes: index of this process, and how many share the texts.
    """
    # 1. The model, and random numbers of this process alone
    loading = {} if text.dtype is None else {"dtype": text.dtype}
    network, tokenizer = load_with_tokenizer(text.model, text.tokenizer, **loading)
    network = network.to(text.device)
    mask_token_id = network.config.mask_token_id
    generator = new_generator(text, process, processes)

    # 2. The prompt, (1, P) each
    inputs, options = prompt_inputs(text, options, network, tokenizer)

    # 3. What is shown meanwhile: a single text while it forms, else a bar that counts steps
    share = len(range(process, text.num_return_sequences, processes))
    texts = []
    rows = []
    forms = text.num_return_sequences == 1 and not as_json and sys.stdout.isatty()
    progress, advance = running(process == 0 and not forms)
    streamer = None
    if forms:
        streamer = TerminalDiffusionStreamer(tokenizer, mask_token_id=mask_token_id, keep=False)
    elif not progress.disable:
        num_batches = -(-share // text.batch_size)
        in_all = network.count_steps(**inputs, **options) * num_batches
        streamer = StepStreamer(lambda step: advance(step, in_all, f"text {len(texts) + 1} of {share}, steps"))

    # 4. Batch after batch
    with progress:
        for done in range(0, share, text.batch_size):
            count = min(text.batch_size, share - done)
            expanded = {name: value.expand(count, -1) for name, value in inputs.items()}
            output = network.generate(
                **expanded,
                **options,
                batch_size=count,
                generator=generator,
                streamer=streamer,
                return_dict_in_generate=True,
                output_history=text.html is not None,
            )
            texts += tokenizer.batch_decode(output.sequences, skip_special_tokens=True)

            # Trajectories are plain Python: the states (T + 1, B, L) can be freed
            if text.html is not None:
                rows += trajectories(output, tokenizer, mask_token_id=mask_token_id)
    return texts, rows


def new_generator(text: TextOptions, process: int, processes: int) -> torch.Generator:
    """Random numbers by the seed that was given, otherwise by a new one."""
    generator = torch.Generator(text.device)
    if text.seed is None:
        generator.seed()
    else:
        # Different for every process, and for one process the seed itself
        generator.manual_seed(text.seed * processes + process)
    return generator


def prompt_inputs(
    text: TextOptions,
    options: dict,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, torch.Tensor], dict]:
    """What is given to the model, and the options with a length.

    Without a prompt the start token is the context of every text that the model has seen, and a text
    is as long as the model allows unless something says its length.
    """
    start = network.config.bos_token_id
    longest = network.config.max_position_embeddings
    if text.prompt is not None:
        inputs = dict(tokenizer([text.prompt], return_tensors="pt"))
        saved = network.generation_config
        length = inputs["input_ids"].shape[1]
        if options.get("max_new_tokens") or saved.max_new_tokens or (saved.max_length or 0) > length:
            # New tokens follow the text, not an end token that the tokenizer puts behind it
            kept = length - num_end_tokens(tokenizer)
            inputs = {name: value[:, :kept] for name, value in inputs.items()}
    elif start is not None:
        inputs = {"input_ids": torch.tensor([[start]])}

        # The start token takes one of the L places
        saved = network.generation_config
        has_length = text.max_new_tokens or saved.max_new_tokens or saved.max_length
        if not has_length and longest is not None:
            options = {**options, "max_new_tokens": longest - 1}
    else:
        inputs = {}

    # Some tokenizers also give token types, which the models do not have
    taken = ("input_ids", "attention_mask")
    inputs = {name: inputs[name].to(text.device) for name in taken if name in inputs}
    return inputs, options


__all__ = ["generate_texts"]
