"""`to_blocks`: documents to rows of L tokens, wrapped as for OpenWebText or cropped as for text8.

The documents form one stream of tokens, in their order, and the stream is cut into rows. A row that
is not complete goes on with the next document, across the batches in which the work is done, so that
every token of the corpus is in exactly one row, in order. (Published code drops the incomplete row at
the end of every 1,000 documents.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from edlm_hf.data.corpus import Corpus, fingerprint
from edlm_hf.data.encoder import Encoder
from edlm_hf.modeling.generation_config_edlm import given_whole_number

DOCUMENTS = 128  # tokenized at a time; their tokens are one piece
PIECES = 4  # cut at a time


def to_blocks(
    dataset: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    style: Literal["wrap", "crop"] = "wrap",
    start_token: bool = False,
    drop_last: bool = True,
) -> Corpus:
    """Rows `input_ids` of `length` tokens from the column "text" of a corpus. A stream gives a stream.

    "wrap": every document is followed by the end token, and every row is the start token,
    `length - 2` tokens of the stream and the end token, as in the OpenWebText protocol. "crop":
    documents follow each other without a mark, and every row is `length` tokens of the stream, as in
    the text8 protocol, or the start token and `length - 1` of them.

    The start token is the tokenizer's `bos_token` or else its `cls_token`, the end token its
    `eos_token` or else its `sep_token`. Text that spells a special token stays text.

    A `Dataset` is cached under a fingerprint of the corpus, the tokenizer and the arguments. A stream
    continues after `skip(n)` or from its `state_dict()` with the same rows, by making the rows before
    that point again, and is a single shard.

    Args:
        length: L, tokens per row, special tokens included.
        style: "wrap" or "crop".
        start_token: with "crop", begin every row with the start token. With "wrap" every row does.
        drop_last: leave out the last row of the corpus if the stream ends inside it. Otherwise that
            row is padded (`input_ids` with the tokenizer's `pad_token`, or with 0 if it has none), its
            end token follows the text, and all rows have an `attention_mask` too, which is 0 on the
            padding.

    Raises:
        ValueError: arguments of other types, no column "text", an unknown style, a length without room
            for text, a special token that the tokenizer does not have, or a corpus too short for a single
            row (for a stream, when its end is reached).
    """
    if not isinstance(dataset, Corpus):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}, but a corpus of load_corpus is needed, or another Dataset or "
            "IterableDataset with the column 'text'. For a list of texts: Dataset.from_dict({'text': texts})."
        )
    check_tokenizer(tokenizer)
    length = given_whole_number("length", length, 1)
    if style not in ("wrap", "crop"):
        raise ValueError(f"style={style!r} is unknown; use 'wrap' or 'crop'.")
    if dataset.column_names is not None and "text" not in dataset.column_names:
        raise ValueError(f"The corpus has no column 'text' but {', '.join(dataset.column_names)}. Use load_corpus.")

    # The special tokens of a row, None where it has none
    wrap = style == "wrap"
    end = special_token(tokenizer, "eos_token", "sep_token") if wrap else None
    start = None
    if wrap or start_token:
        start = special_token(tokenizer, "bos_token", "cls_token")
    pad = None if drop_last else tokenizer.pad_token_id or 0

    # A wrapped stream has the end token after every document too
    layout = Layout(length=length, start=start, end=end, pad=pad)
    encoder = Encoder(tokenizer, separator=end)

    # The smallest integers that hold the vocabulary, since a corpus is large
    columns = {"input_ids": datasets.Sequence(datasets.Value(encoder.dtype))}
    if not drop_last:
        columns["attention_mask"] = datasets.Sequence(datasets.Value("uint8"))
    features = datasets.Features(columns)

    if isinstance(dataset, datasets.IterableDataset):
        parts = {"dataset": dataset, "encoder": encoder, "layout": layout}
        return datasets.IterableDataset.from_generator(stream_rows, features=features, gen_kwargs=parts)
    return cut_dataset(dataset, encoder, layout, features)


@dataclass(frozen=True)
class Layout:
    """A row: `length` tokens, `start` first and `end` last unless None. `pad` fills the last row unless None."""

    length: int
    start: int | None
    end: int | None
    pad: int | None

    def __post_init__(self):
        special = self.length - self.body
        if self.body < 1:
            raise ValueError(
                f"length={self.length} has no room for text beside {special} special tokens; use a longer one."
            )

    @property
    def body(self) -> int:
        """Tokens of the stream in a row."""
        return self.length - (self.start is not None) - (self.end is not None)

    def rows(self, tokens: int) -> int:
        """The number of rows that a stream of so many tokens gives."""
        if self.pad is None:
            return tokens // self.body
        return ceil_div(tokens, self.body)

    def check(self, tokens: int) -> None:
        """Raise ValueError if a stream of so many tokens gives no row."""
        if self.rows(tokens) == 0:
            raise ValueError(
                f"The corpus has {tokens} tokens, and a row of length={self.length} takes {self.body}. "
                "Use a longer text, a smaller length, or drop_last=False if the corpus is not empty."
            )

    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The columns, each (rows, length), of a part of the stream that begins where a row begins, tokens (n,)."""
        num_rows = self.rows(len(tokens))
        pad = self.pad or 0

        # The stream of these rows, with padding after its end
        stream = np.full(num_rows * self.body, pad, tokens.dtype)
        num_tokens = min(len(tokens), len(stream))
        stream[:num_tokens] = tokens[:num_tokens]

        # Tokens of every row besides padding, which only the last one can have: (rows,)
        lengths = np.full(num_rows, self.length)
        lengths[-1:] -= len(stream) - num_tokens

        # [start] body [end], the end token right after the text
        ids = np.full((num_rows, self.length), pad, tokens.dtype)
        first = int(self.start is not None)
        last = first + self.body
        ids[:, first:last] = stream.reshape(num_rows, self.body)
        if self.start is not None:
            ids[:, 0] = self.start
        if self.end is not None:
            rows = np.arange(num_rows)
            ids[rows, lengths - 1] = self.end

        # (rows, length), 0 on the padding
        columns = {"input_ids": ids}
        if self.pad is not None:
            present = np.arange(self.length) < lengths[:, None]
            columns["attention_mask"] = present.astype(np.uint8)
        return columns


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def check_tokenizer(tokenizer) -> None:
    """Raise ValueError unless `tokenizer` is one of transformers."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, but a tokenizer of transformers is needed: "
            "AutoTokenizer.from_pretrained(...), or edlm_hf.tokenization.text8_tokenizer()."
        )


def special_token(tokenizer: PreTrainedTokenizerBase, name: str, fallback: str) -> int:
    """The id of a special token, or else of the one that stands in for it.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for attribute in (name, fallback):
        token_id = getattr(tokenizer, attribute + "_id")
        if token_id is not None:
            return token_id
    raise ValueError(
        f"The tokenizer has neither {name} nor {fallback}, but the blocks need one: set tokenizer.{name}, or use "
        "style='crop' without start_token."
    )


def cut_dataset(
    dataset: datasets.Dataset,
    encoder: Encoder,
    layout: Layout,
    features: datasets.Features,
) -> datasets.Dataset:
    """The rows of a dataset on disk, in two passes that are both cached."""
    if len(dataset) == 0:
        layout.check(0)

    # 1. Pieces of the stream: the tokens of DOCUMENTS documents each
    piece_features = {
        "tokens": datasets.Sequence(datasets.Value(encoder.dtype)),
        "count": datasets.Value("int64"),
    }
    pieces = dataset.with_format(None).map(
        tokenize_documents,
        batched=True,
        batch_size=DOCUMENTS,
        input_columns=["text"],
        remove_columns=dataset.column_names,
        features=datasets.Features(piece_features),
        fn_kwargs={"encoder": encoder},
        new_fingerprint=fingerprint(dataset, "tokens", encoder.state()),
        desc="Tokenizing",
    )

    # Where every piece ends in the stream, (pieces,)
    ends = np.cumsum(pieces["count"][:], dtype=np.int64)
    layout.check(int(ends[-1]))

    # 2. Rows of L tokens, which read on into the next pieces
    pieces = pieces.with_format("arrow")
    blocks = pieces.map(
        cut_rows,
        batched=True,
        batch_size=PIECES,
        with_indices=True,
        remove_columns=pieces.column_names,
        features=features,
        fn_kwargs={"pieces": pieces, "ends": ends, "layout": layout},
        new_fingerprint=fingerprint(pieces, "blocks", layout),
        desc=f"Blocks of {layout.length} tokens",
    )
    return blocks.with_format(None)


def tokenize_documents(texts: list[str], encoder: Encoder) -> dict[str, list]:
    """One piece of the stream, and the number of its tokens."""
    tokens = encoder(texts)
    return {"tokens": [tokens], "count": [len(tokens)]}


def cut_rows(
    batch: pa.Table,
    indices: list[int],
    pieces: datasets.Dataset,
    ends: np.ndarray,
    layout: Layout,
) -> pa.Table:
    """The rows that begin in this batch of pieces. The last one may read on into the pieces that follow.

    Args:
        indices: of the pieces in the batch.
        pieces: all pieces, whose tokens end at the positions `ends` of the stream.
    """
    # The batch has the tokens start..stop of the stream
    tokens = tokens_of(batch)
    stop = int(ends[indices[-1]])
    start = stop - len(tokens)

    # The rows first..last begin there, if the corpus has so many
    num_rows_in_all = layout.rows(int(ends[-1]))
    first = ceil_div(start, layout.body)
    last = min(ceil_div(stop, layout.body), num_rows_in_all)
    num_rows = max(last - first, 0)

    # Their tokens, from this batch and as many of the next pieces as they reach into
    needed = num_rows * layout.body
    skipped = first * layout.body - start  # of a row that began before this batch
    parts = [tokens[skipped:]]
    following = indices[-1] + 1
    while sum(map(len, parts)) < needed and following < len(pieces):
        parts.append(tokens_of(pieces[following]))
        following += 1
    columns = layout(np.concatenate(parts)[:needed])

    # Arrow has a list per row as one flat array and the places where the rows begin
    offsets = pa.array(np.arange(num_rows + 1) * layout.length, pa.int32())
    arrays = {}
    for name, values in columns.items():
        arrays[name] = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
    return pa.table(arrays)


def tokens_of(pieces: pa.Table) -> np.ndarray:
    """All tokens of some pieces, (n,)."""
    chunks = pieces["tokens"].chunks
    return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])


def stream_rows(
    dataset: datasets.IterableDataset,
    encoder: Encoder,
    layout: Layout,
) -> Iterator[dict[str, list[int]]]:
    """The rows of a stream, one by one."""
    rest = np.empty(0, encoder.dtype)  # of a row that is not complete
    num_tokens = 0
    for batch in dataset.iter(DOCUMENTS):
        tokens = encoder(batch["text"])
        num_tokens += len(tokens)

        # The tokens that fill whole rows
        rest = np.concatenate([rest, tokens])
        num_rows = len(rest) // layout.body
        complete = num_rows * layout.body
        yield from as_rows(layout(rest[:complete]))
        rest = rest[complete:]

    # The row that is not complete, with padding or not at all
    layout.check(num_tokens)
    yield from as_rows(layout(rest))


def as_rows(columns: dict[str, np.ndarray]) -> Iterator[dict[str, list[int]]]:
    """Columns (rows, length) row by row."""
    for row in zip(*columns.values(), strict=True):
        yield {name: values.tolist() for name, values in zip(columns, row, strict=True)}
