"""`load_corpus`: any text corpus as a dataset with the single column "text", one document per row.

By the name of a protocol, from the Hub, or from local files; streaming or not.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from datasets.utils import logging as datasets_logging

import edlm_hf
from edlm_hf.data.files import fault_of_text, find_files, kind_of, reading
from edlm_hf.data.protocols import PROTOCOLS, Protocol
from edlm_hf.errors import one_line, why_not_written

# Of a file that is streamed, so much is looked at before
LOOKED_AT = 2**20

Corpus = datasets.Dataset | datasets.IterableDataset


def fingerprint(dataset: datasets.Dataset, *parts) -> str:
    """Name in the cache of what `parts` make of `dataset`; another version of this package has other names."""
    return Hasher.hash((dataset._fingerprint, edlm_hf.__version__, *parts))


def load_corpus(
    name_or_path: str,
    split: str = "train",
    *,
    streaming: bool = False,
    text_column: str | None = None,
    normalize: Callable[[str], str] | None = None,
) -> Corpus:
    """A corpus with the single column "text"; a row is a document.

    Args:
        name_or_path: one of
            - the name of a protocol (`PROTOCOLS`): its dataset, cleaned as published;
            - a local file (.parquet, .jsonl, .json, .txt, .csv, .tsv, also compressed as .gz, .bz2, .xz or .zst), a
              pattern of such files, or a folder of them. A file or pattern *is* the split asked for; in a folder the
              splits are told by the names of files or subfolders, as `datasets` does. A .txt file (UTF-8, or UTF-16
              with a byte order mark) is one document, in the other kinds every row is one;
            - a dataset on the Hub, "owner/name" or "owner/name:config".
        split: "train", "validation" or "test" for a protocol; otherwise whatever `datasets` takes, "train[:1%]" say.
        streaming: an `IterableDataset`, read while it is used, instead of a `Dataset` on disk. The validation split of
            a protocol with held-out rows is then reached only by reading past all rows before it.
        text_column: the column with the text. By default that of the protocol; else "text", or the only column of
            strings.
        normalize: applied to every document last, for example `edlm_hf.tokenization.normalize_text8`.

    Raises:
        ValueError: nothing is known by that name; the protocol has no such split; files of several kinds in a folder;
            a file that cannot be read, with what is wrong in it; no text column, or none that could be told.
    """
    protocol = PROTOCOLS.get(name_or_path)
    if protocol is not None:
        dataset = _load_protocol(protocol, split, streaming)
    else:
        dataset = _load_files_or_repository(name_or_path, split, streaming)
    dataset = _only_text(dataset, text_column or (protocol.text_column if protocol else None), name_or_path)
    functions = [function for function in (protocol and protocol.clean, normalize) if function is not None]
    if not functions:
        return dataset
    cached = {} if streaming else {"new_fingerprint": fingerprint(dataset, functions), "desc": "Cleaning text"}
    return dataset.map(_apply, batched=True, batch_size=128, fn_kwargs={"functions": functions}, **cached)


def _load_protocol(protocol: Protocol, split: str, streaming: bool) -> Corpus:
    if split not in protocol.splits:
        raise ValueError(f"The protocol {protocol.name!r} has no split {split!r}; it has {', '.join(protocol.splits)}.")
    if protocol.files is not None:
        url = f"hf://datasets/{protocol.path}@{protocol.revision}/{protocol.files.format(split=split)}"
        source = {"path": kind_of(Path(protocol.files)), "data_files": {split: url}}
    else:
        source = {"path": protocol.path, "name": protocol.config, "revision": protocol.revision}
    if not protocol.held_out:
        return datasets.load_dataset(**source, split=split, streaming=streaming)
    if not streaming:
        rows = f"[:-{protocol.held_out}]" if split == "train" else f"[-{protocol.held_out}:]"
        return datasets.load_dataset(**source, split="train" + rows, streaming=False)
    stream = datasets.load_dataset(**source, split="train", streaming=True)
    first = protocol.rows - protocol.held_out
    return stream.take(first) if split == "train" else stream.skip(first)


def has_splits(name_or_path: str) -> bool:
    """Whether a corpus may have several splits: all but local files, which are one."""
    if name_or_path in PROTOCOLS or Path(name_or_path).expanduser().is_dir():
        return True
    return not find_files(name_or_path, "train")


def _load_files_or_repository(name: str, split: str, streaming: bool) -> Corpus:
    files = find_files(name, split)
    if not files:
        return datasets.load_dataset(**_repository(name), split=split, streaming=streaming)
    source = reading(name, files)
    if streaming:
        _check_texts(files, LOOKED_AT)

    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(logging.CRITICAL)  # what is wrong is told once, with the name of the file
    try:
        return datasets.load_dataset(**source, split=split, streaming=streaming)
    except (DatasetsError, pa.ArrowInvalid) as error:
        cause = error.__cause__ or error
        if isinstance(cause, Exception) and why_not_written(cause):
            raise cause from None
        _check_texts(files)
        raise ValueError(f"{name} cannot be read: {one_line(cause)}") from error
    finally:
        datasets_logging.set_verbosity(level)


def _check_texts(files: dict[str, list[Path]], most_bytes: int | None = None) -> None:
    """Raise ValueError with what is wrong if a file, or its first `most_bytes`, cannot be read."""
    for file in (file for part in files.values() for file in part):
        if fault := fault_of_text(file, most_bytes):
            raise ValueError(f"{file} {fault}.")


def _repository(name: str) -> dict:
    """The arguments of `datasets.load_dataset` for a dataset of the Hub."""
    repository, _, config = name.partition(":")
    path = Path(name).expanduser()
    if (path.suffix and kind_of(path)) or repository.count("/") != 1 or path.is_absolute():
        raise ValueError(
            f"No corpus {name!r}: it is no protocol ({', '.join(PROTOCOLS)}), no such file or folder exists, "
            "and a dataset on the Hub is written owner/name or owner/name:config."
        )
    return {"path": repository, "name": config or None}


def _only_text(dataset: Corpus, text_column: str | None, name: str) -> Corpus:
    """The dataset with that column alone, as "text"; without one, "text" or the only column of strings."""
    if dataset.features is not None:
        strings = {
            column: getattr(kind, "dtype", "") in ("string", "large_string")
            for column, kind in dataset.features.items()
        }
    else:  # a stream tells its columns only in its rows
        strings = {column: isinstance(value, str) for column, value in next(iter(dataset), {}).items()}
    if text_column is None:
        text_columns = [column for column, is_string in strings.items() if is_string]
        text_column = "text" if "text" in text_columns else text_columns[0] if len(text_columns) == 1 else None
    if text_column not in strings:
        what = "cannot tell which column is the text" if text_column is None else f"no column {text_column!r}"
        raise ValueError(f"{name}: {what}. Give text_column, one of {', '.join(strings) or '(it has no rows)'}.")
    dataset = dataset.select_columns([text_column])
    return dataset if text_column == "text" else dataset.rename_column(text_column, "text")


def _apply(batch: dict[str, list], functions: list[Callable[[str], str]]) -> dict[str, list[str]]:
    texts = [text or "" for text in batch["text"]]
    for function in functions:
        texts = [function(text) for text in texts]
    return {"text": texts}
