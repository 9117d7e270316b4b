"""`to_blocks`: documents to rows of L tokens, wrapped as in the OpenWebText protocol or cropped as in that of text8.

The documents form one stream of tokens, in their order, and the stream is cut into rows. A row that is not complete
goes on with the next document, across the batches in which the work is done, so that every token of the corpus is in
exactly one row, in order (published code drops the incomplete row at the end of every 1,000 documents).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf.data.corpus import Corpus, fingerprint
from edlm_hf.tokenization import TEXT8_ALPHABET, text8_tokenizer

DOCUMENTS = 128  # tokenized at a time


def to_blocks(
    dataset: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    style: Literal["wrap", "crop"] = "wrap",
    start_token: bool = False,
    drop_last: bool = True,
) -> Corpus:
    """Rows `input_ids` of `length` tokens from the column "text" of a corpus; a stream gives a stream.

    "wrap": every document is followed by the end token, and every row is the start token, `length - 2` tokens of the
    stream and the end token, as in the OpenWebText protocol. "crop": documents follow each other without a mark, and
    every row is `length` tokens of the stream, as in the text8 protocol, or the start token and `length - 1` of them.

    The start token is the tokenizer's `bos_token` or else its `cls_token`, the end token its `eos_token` or else its
    `sep_token`. Text that spells a special token stays text. A `Dataset` is cached under a fingerprint of the corpus,
    the tokenizer and the arguments; a stream continues after `skip(n)` or from its `state_dict()` with the same rows,
    by making those before that point again, and is a single shard.

    Args:
        length: L, tokens per row, special tokens included.
        style: "wrap" or "crop".
        start_token: with "crop", begin every row with the start token; with "wrap" every row does.
        drop_last: leave out the last row of the corpus if the stream ends inside it. Otherwise that row is padded
            (`input_ids` with the tokenizer's `pad_token`, or with 0 if it has none), its end token right behind the
            text, and all rows have an `attention_mask` too, which is 0 on the padding.

    Raises:
        ValueError: no column "text"; an unknown style; a length without room for text; a special token that the
            tokenizer does not have; a corpus too short for a single row (for a stream, when its end is reached).
    """
    if style not in ("wrap", "crop"):
        raise ValueError(f"style={style!r} is unknown; use 'wrap' or 'crop'.")
    if dataset.column_names is not None and "text" not in dataset.column_names:
        raise ValueError(f"The corpus has no column 'text' but {', '.join(dataset.column_names)}. Use load_corpus.")
    wrap = style == "wrap"
    end = _special_token(tokenizer, "eos_token", "sep_token") if wrap else None
    layout = Layout(
        length=length,
        start=_special_token(tokenizer, "bos_token", "cls_token") if wrap or start_token else None,
        end=end,
        pad=None if drop_last else tokenizer.pad_token_id or 0,
    )
    encoder = Encoder(tokenizer, separator=end)
    columns = {"input_ids": encoder.dtype} | ({} if drop_last else {"attention_mask": "uint8"})
    features = datasets.Features({name: datasets.Sequence(datasets.Value(dtype)) for name, dtype in columns.items()})
    if isinstance(dataset, datasets.IterableDataset):
        parts = {"dataset": dataset, "encoder": encoder, "layout": layout}
        return datasets.IterableDataset.from_generator(_stream, features=features, gen_kwargs=parts)

    if len(dataset) == 0:
        layout.check(0)
    # Two passes, both cached: tokens of DOCUMENTS documents per row, then rows of L tokens that read on into the next.
    pieces = dataset.with_format(None).map(
        _tokenize,
        batched=True,
        batch_size=DOCUMENTS,
        input_columns=["text"],
        remove_columns=dataset.column_names,
        features=datasets.Features(
            {"tokens": datasets.Sequence(datasets.Value(encoder.dtype)), "count": datasets.Value("int64")}
        ),
        fn_kwargs={"encoder": encoder},
        new_fingerprint=fingerprint(dataset, "tokens", encoder.state()),
        desc="Tokenizing",
    )
    ends = np.cumsum(pieces["count"][:], dtype=np.int64)
    layout.check(int(ends[-1]))
    pieces = pieces.with_format("arrow")
    blocks = pieces.map(
        _cut,
        batched=True,
        batch_size=4,
        with_indices=True,
        remove_columns=pieces.column_names,
        features=features,
        fn_kwargs={"pieces": pieces, "ends": ends, "layout": layout},
        new_fingerprint=fingerprint(pieces, "blocks", layout),
        desc=f"Blocks of {length} tokens",
    )
    return blocks.with_format(None)


@dataclass(frozen=True)
class Layout:
    """A row: `length` tokens, `start` first and `end` last unless None; `pad` fills the last one unless None."""

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
        """Rows made of a stream of so many tokens."""
        return tokens // self.body if self.pad is None else -(-tokens // self.body)

    def check(self, tokens: int) -> None:
        """Raise ValueError if a stream of so many tokens makes no row."""
        if self.rows(tokens) == 0:
            raise ValueError(
                f"The corpus has {tokens} tokens, and a row of length={self.length} takes {self.body}. "
                "Use a longer text, a smaller length, or drop_last=False if the corpus is not empty."
            )

    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The columns, each (rows, length), of a part of the stream that begins where a row begins, tokens (n,)."""
        count, first = self.rows(len(tokens)), int(self.start is not None)
        stream = np.full(count * self.body, self.pad or 0, tokens.dtype)
        missing = max(0, len(stream) - len(tokens))
        stream[: len(stream) - missing] = tokens[: len(stream)]
        used = np.full(count, self.length)
        used[-1:] -= missing
        ids = np.full((count, self.length), self.pad or 0, tokens.dtype)
        ids[:, first : first + self.body] = stream.reshape(count, self.body)
        if self.start is not None:
            ids[:, 0] = self.start
        if self.end is not None:
            ids[np.arange(count), used - 1] = self.end
        if self.pad is None:
            return {"input_ids": ids}
        return {"input_ids": ids, "attention_mask": (np.arange(self.length) < used[:, None]).astype(np.uint8)}


class Encoder:
    """Texts to one array of ids, every text followed by `separator` unless that is None."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: int | None):
        self.tokenizer, self.separator = tokenizer, separator
        self.dtype = np.min_scalar_type(max(tokenizer.get_vocab().values())).name
        self.table = _text8_table(tokenizer) if self.dtype == "uint8" else None

    def __call__(self, texts: list[str | None]) -> np.ndarray:
        texts = [text or "" for text in texts]
        if self.table is not None:
            after = b"" if self.separator is None else bytes([self.separator])
            ids = b"".join(text.encode("ascii", "replace").translate(self.table) + after for text in texts)
            return np.frombuffer(ids, np.uint8)
        after = [] if self.separator is None else [self.separator]
        ids = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        count = sum(map(len, ids)) + len(after) * len(ids)
        return np.fromiter(chain.from_iterable(chain(row, after) for row in ids), self.dtype, count)

    def state(self) -> str:
        """What its results depend on, the same before and after the tokenizer is used."""
        rules = _backend(self.tokenizer) or self.tokenizer.get_vocab()
        return json.dumps([type(self.tokenizer).__name__, rules, self.separator], sort_keys=True)


def document_windows(ids: torch.Tensor, length: int, stride: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping windows on a document longer than the model, and which tokens to score in each.

    Every token is scored once: in the first window all are, in each later one those that the window before it does not
    reach, so that at least `length - stride` tokens to their left are seen. The last window ends with the document.

    Args:
        ids: (n,) tokens of the document.
        length: L, tokens per window; a shorter document is one window of n.
        stride: from one window to the next, at most L; L (windows side by side) unless given.

    Returns:
        windows (N, L) as `ids`, and scored (N, L) of bool, True n times in all.

    Raises:
        ValueError: `ids` is not a document of at least one token; a length or stride that is not allowed.
    """
    stride = length if stride is None else stride
    if ids.dim() != 1 or len(ids) == 0:
        raise ValueError(f"ids has shape {tuple(ids.shape)}; one document of shape (n,) with n > 0 is needed.")
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride} with length={length}; 1 <= stride <= length is needed, or tokens are lost.")
    length = min(length, len(ids))
    steps = -(-(len(ids) - length) // stride)
    begins = (torch.arange(steps + 1, device=ids.device) * stride).clamp(max=len(ids) - length)
    positions = begins[:, None] + torch.arange(length, device=ids.device)
    scored_before = torch.cat([begins[:1], begins[:-1] + length])
    return ids[positions], positions >= scored_before[:, None]


def _tokenize(texts: list[str], encoder: Encoder) -> dict[str, list]:
    tokens = encoder(texts)
    return {"tokens": [tokens], "count": [len(tokens)]}


def _cut(batch: pa.Table, indices: list[int], pieces: datasets.Dataset, ends: np.ndarray, layout: Layout) -> pa.Table:
    """The rows that begin in this batch of pieces; the last one may read on into the pieces that follow."""
    tokens, following, stop = _flat(batch), indices[-1] + 1, int(ends[indices[-1]])
    start = stop - len(tokens)
    first = -(-start // layout.body)
    last = max(first, min(-(-stop // layout.body), layout.rows(int(ends[-1]))))
    parts, needed = [tokens[first * layout.body - start :]], (last - first) * layout.body
    while sum(map(len, parts)) < needed and following < len(pieces):
        parts.append(_flat(pieces[following]))
        following += 1
    columns = layout(np.concatenate(parts)[:needed])
    offsets = pa.array(np.arange(last - first + 1) * layout.length, pa.int32())
    return pa.table({name: pa.ListArray.from_arrays(offsets, pa.array(x.ravel())) for name, x in columns.items()})


def _flat(pieces: pa.Table) -> np.ndarray:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in pieces["tokens"].chunks])


def _stream(dataset: datasets.IterableDataset, encoder: Encoder, layout: Layout) -> Iterator[dict[str, list[int]]]:
    rest, seen = np.empty(0, encoder.dtype), 0
    for batch in dataset.iter(DOCUMENTS):
        tokens = encoder(batch["text"])
        seen += len(tokens)
        rest = np.concatenate([rest, tokens])
        whole = len(rest) // layout.body * layout.body
        yield from _rows(layout(rest[:whole]))
        rest = rest[whole:]
    layout.check(seen)
    yield from _rows(layout(rest))


def _rows(columns: dict[str, np.ndarray]) -> Iterator[dict[str, list[int]]]:
    for row in zip(*columns.values(), strict=True):
        yield {name: values.tolist() for name, values in zip(columns, row, strict=True)}


def _special_token(tokenizer: PreTrainedTokenizerBase, name: str, instead: str) -> int:
    for attribute in (name, instead):
        if (token_id := getattr(tokenizer, attribute + "_id")) is not None:
            return token_id
    raise ValueError(
        f"The tokenizer has neither {name} nor {instead}, but the blocks need one: set tokenizer.{name}, or use "
        "style='crop' without start_token."
    )


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict | None:
    """The parts of a fast tokenizer that decide its ids."""
    if not tokenizer.is_fast:
        return None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: state[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}


def _text8_table(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """The id of each of 256 bytes where `tokenizer` is that of `text8_tokenizer`, for `bytes.translate`; else None."""
    mine, state = _backend(text8_tokenizer()), _backend(tokenizer)
    if state is None or any(state[name] != mine[name] for name in ("normalizer", "pre_tokenizer")):
        return None
    space, *letters = tokenizer.convert_tokens_to_ids(list(TEXT8_ALPHABET))
    table = bytearray([space]) * 256
    for letter, token_id in zip(TEXT8_ALPHABET[1:], letters, strict=True):
        table[ord(letter)] = table[ord(letter.upper())] = token_id
    return bytes(table)
