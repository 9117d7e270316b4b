"""The tokenizer of a training command, and the blocks that it trains and evaluates on."""

from edlm_hf.commands.training_flags import DataArguments
from edlm_hf.data import PROTOCOLS, load_corpus, to_blocks
from edlm_hf.data.corpus import has_splits
from edlm_hf.loading import load_config, load_tokenizer
from edlm_hf.modeling.network_facts import longest_text
from edlm_hf.tokenization import add_mask_token, normalize_text8, text8_tokenizer


def choose_tokenizer(data: DataArguments, start: str | None):
    """The tokenizer; `data` gets what was not said of blocks, where needed from `start`, the model to start from."""
    protocol = PROTOCOLS.get(data.dataset)
    config = load_config(start) if start else None
    longest = longest_text(config)
    data.length = data.length or (protocol.length if protocol else longest or 1024)
    data.style = data.style or (protocol.style if protocol else "wrap")
    data.start_token |= data.style == "crop" and getattr(config, "bos_token_id", None) is not None
    data.tokenizer = data.tokenizer or start or "text8"
    if data.tokenizer == "text8":
        return text8_tokenizer(data.length, start_token=data.start_token)
    return add_mask_token(load_tokenizer(data.tokenizer))


def load_blocks(data: DataArguments, tokenizer, training: bool):
    name = data.dataset if training else data.eval_dataset or data.dataset
    protocol = PROTOCOLS.get(name)
    held_out = protocol.evaluation if protocol and "validation" not in protocol.splits else "validation"
    split = data.train_split if training else data.eval_split or held_out
    normalize = normalize_text8 if data.normalize_text8 else None
    streaming = data.streaming and training
    corpus = load_corpus(name, split, streaming=streaming, text_column=data.text_column, normalize=normalize)
    start_token = data.start_token and data.style == "crop"
    blocks = to_blocks(corpus, tokenizer, data.length, style=data.style, start_token=start_token)
    return blocks if streaming else blocks.with_format("numpy")


def load_sets(data: DataArguments, tokenizer) -> tuple:
    """Blocks to train and to evaluate on."""
    training = load_blocks(data, tokenizer, training=True)
    if data.eval_dataset is not None or has_splits(data.dataset):
        blocks = load_blocks(data, tokenizer, training=False)
    elif data.streaming or len(training) < 2:
        raise ValueError(f"{data.dataset} has nothing to evaluate on: give --eval_dataset.")
    else:
        last = len(training) - max(1, len(training) // 20)
        training, blocks = training.select(range(last)), training.select(range(last, len(training)))
    return training, blocks.select(range(min(data.eval_blocks or len(blocks), len(blocks))))
