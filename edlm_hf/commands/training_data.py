"""The tokenizer of a training command, and the blocks that it trains and evaluates on."""

from transformers import PreTrainedTokenizerBase

from edlm_hf.commands.training_flags import DataArguments
from edlm_hf.data import PROTOCOLS, BlockRule, block_rule
from edlm_hf.data.corpus import Corpus, splits_of
from edlm_hf.loading import load_config, load_tokenizer
from edlm_hf.tokenization import add_mask_token, text8_tokenizer

# Of a new model, on a corpus that is not a protocol
NEW_LENGTH = 1024


def choose_tokenizer(data: DataArguments, start: str | None) -> PreTrainedTokenizerBase:
    """Load or make the tokenizer, and decide in `data` how the corpus is cut, as far as it is not chosen.

    Args:
        start: the model that training starts from.
    """
    # 1. The tokenizer that is given, else the one of the model, else a new one of 27 characters
    config = load_config(start) if start else None
    data.tokenizer = data.tokenizer or start or "text8"
    is_new = data.tokenizer == "text8"
    if is_new:
        tokenizer = text8_tokenizer()
    else:
        tokenizer = add_mask_token(load_tokenizer(data.tokenizer))

    # 2. The blocks. What is decided here is part of the recipe of the run
    rule = rule_of(data, data.dataset, tokenizer, config)
    data.length = rule.length or NEW_LENGTH
    data.style = rule.style
    data.start_token = rule.start_token
    # Where it is not needed here, it may still be for `eval_dataset`
    data.normalize_text8 = rule.normalize_text8 or data.normalize_text8

    # 3. A new tokenizer is made again, now that length and start token are known
    if is_new:
        return text8_tokenizer(data.length, start_token=data.start_token)
    return tokenizer


def rule_of(data: DataArguments, source: str, tokenizer: PreTrainedTokenizerBase, config=None) -> BlockRule:
    """The rule for a corpus, with what the flags choose."""
    return block_rule(
        source,
        tokenizer,
        config,
        length=data.length,
        style=data.style,
        start_token=data.start_token,
        normalize_text8=data.normalize_text8,
    )


def load_blocks(data: DataArguments, tokenizer: PreTrainedTokenizerBase, training: bool) -> Corpus:
    """The blocks to train on, or those to evaluate on."""
    if training:
        source = data.dataset
        split = data.train_split
    else:
        source = data.eval_dataset or data.dataset
        split = data.eval_split or held_out_split(source) or "validation"

    # What is evaluated on is read many times, and must be of a fixed size
    streaming = data.streaming and training
    rule = rule_of(data, source, tokenizer)
    corpus = rule.load(source, split, streaming=streaming, text_column=data.text_column)
    blocks = rule.cut(corpus, tokenizer)
    return blocks if streaming else blocks.with_format("numpy")


def held_out_split(source: str) -> str | None:
    """The validation split of a corpus, or the one that it is tested on. None where it has neither."""
    splits = splits_of(source)
    tested_on = PROTOCOLS[source].evaluation if source in PROTOCOLS else "test"
    for split in ("validation", tested_on):
        if split in splits:
            return split
    return None


def has_held_out_rows(data: DataArguments) -> bool:
    """Whether what is evaluated on is a set of its own, which is not cut off the training rows.

    Raises:
        ValueError: a split to evaluate on is named of files that have no splits.
    """
    if data.eval_dataset is not None:
        return True
    if data.eval_split is None:
        return held_out_split(data.dataset) is not None

    # Nothing would read the split of plain files
    if not splits_of(data.dataset):
        raise ValueError(
            f"eval_split is {data.eval_split!r}, but the files {data.dataset} have no splits. Give a folder with "
            "files such as train.txt and test.txt, or --eval_dataset."
        )
    return True


def load_sets(data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[Corpus, Corpus]:
    """Blocks to train and to evaluate on.

    Raises:
        ValueError: there is nothing to evaluate on.
    """
    # A split of its own, if there is one
    training = load_blocks(data, tokenizer, training=True)
    if has_held_out_rows(data):
        blocks = load_blocks(data, tokenizer, training=False)
    elif data.streaming or len(training) < 2:
        raise ValueError(f"{data.dataset} has nothing to evaluate on: give --eval_dataset.")
    else:
        # No other split: the last twentieth is not trained on
        num_held_out = max(1, len(training) // 20)
        last = len(training) - num_held_out
        blocks = training.select(range(last, len(training)))
        training = training.select(range(last))

    # The first blocks, the same ones in every evaluation
    num_blocks = min(data.eval_blocks or len(blocks), len(blocks))
    return training, blocks.select(range(num_blocks))
