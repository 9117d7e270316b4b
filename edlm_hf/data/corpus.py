"""`load_corpus`: any text corpus as a dataset with the single column "text", one document per row.

A corpus is found by the name of a protocol, on the Hub, or in local files, and may be streamed.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from datasets.utils import logging as datasets_logging

import edlm_hf
from edlm_hf.data.file_faults import fault_of_text
from edlm_hf.data.files import find_files, kind_of, reading
from edlm_hf.data.protocols import PROTOCOLS, Protocol
from edlm_hf.errors import one_line, why_not_written
from edlm_hf.terminal import is_first_process, tell

# Bytes of a file that are checked before it is streamed
CHECKED_BYTES = 2**20
# Documents that are cleaned at a time
DOCUMENTS = 128
# Types of columns
TEXT = "string"
NOTHING = "null"
# As `datasets` calls them, and Python, of the values in a row
TYPES = {
    "string": TEXT,
    "large_string": TEXT,
    "string_view": TEXT,
    "str": TEXT,
    "null": NOTHING,
    "NoneType": NOTHING,
}

Corpus = datasets.Dataset | datasets.IterableDataset


def fingerprint(dataset: datasets.Dataset, *parts) -> str:
    """Name in the cache for the result of `parts` on `dataset`. Another version of this package has other names."""
    return Hasher.hash((dataset._fingerprint, edlm_hf.__version__, *parts))


def load_corpus(
    name_or_path: str,
    split: str = "train",
    *,
    streaming: bool = False,
    text_column: str | None = None,
    normalize: Callable[[str], str] | None = None,
) -> Corpus:
    """A corpus with the single column "text". A row is a document.

    Args:
        name_or_path: one of
            - the name of a protocol (`PROTOCOLS`): its dataset, cleaned as published,
            - a local file (.parquet, .jsonl, .json, .txt, .csv, .tsv, also compressed as .gz, .bz2,
              .xz or .zst), a pattern of such files, or a folder of them. A file or pattern *is* the
              split asked for. In a folder, names of files or subfolders decide the splits, as in
              `datasets`. A .txt file (UTF-8, or UTF-16 with a byte order mark) is one document, in the
              other kinds every row is one,
            - a dataset on the Hub, "owner/name" or "owner/name:config".
        split: "train", "validation" or "test" for a protocol, otherwise any split of `datasets`, such
            as "train[:1%]".
        streaming: an `IterableDataset`, read while it is used, instead of a `Dataset` on disk. The
            validation split of a protocol with held-out rows is then reached only by reading past all
            rows before it.
        text_column: the column with the text. Unless given, the column of the protocol, or else
            "text", or the only column of strings.
        normalize: applied to every document last, for example `edlm_hf.tokenization.normalize_text8`.

    Raises:
        ValueError: a name is not a text or is unknown, the protocol has no such split, a folder has
            files of several kinds, a file cannot be read (the message gives its fault), there are no
            rows, there is no text column, it is not clear which one it is, or it holds something else
            than text.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise ValueError(
            f"name_or_path is {name_or_path!r}, but the name of a protocol, dataset, file or folder is needed."
        )
    if not isinstance(split, (str, datasets.NamedSplit, datasets.ReadInstruction)):
        raise ValueError(f"split is {split!r}, but the name of one split is needed, such as 'train' or 'train[:1%]'.")

    # Files are looked up by the name of a split
    if isinstance(split, datasets.ReadInstruction):
        split = split.to_spec()
    split = str(split)

    protocol = PROTOCOLS.get(name_or_path)
    if protocol is None:
        dataset = load_files_or_repository(name_or_path, split, streaming)
        cleaning = [normalize]
    else:
        dataset = load_protocol(protocol, split, streaming)
        text_column = text_column or protocol.text_column
        cleaning = [protocol.clean, normalize]
    dataset = select_text(dataset, text_column, name_or_path)

    functions = [function for function in cleaning if function is not None]
    if not functions:
        return dataset

    # A stream has no cache. The fingerprint has the version of this package in it.
    caching = {}
    if not streaming:
        caching = {
            "new_fingerprint": fingerprint(dataset, functions),
            "desc": "Cleaning text",
        }

    return dataset.map(
        clean_texts,
        batched=True,
        batch_size=DOCUMENTS,
        fn_kwargs={"functions": functions},
        **caching,
    )


def load_protocol(protocol: Protocol, split: str, streaming: bool) -> Corpus:
    """A split of the dataset of a protocol, as it is on the Hub.

    Raises:
        ValueError: the protocol has no such split.
    """
    if split not in protocol.splits:
        raise ValueError(f"The protocol {protocol.name!r} has no split {split!r}; it has {', '.join(protocol.splits)}.")

    # The dataset itself, or files of it by their builder
    if protocol.files is None:
        source = {
            "path": protocol.path,
            "name": protocol.config,
            "revision": protocol.revision,
        }
    else:
        files = protocol.files.format(split=split)
        url = f"hf://datasets/{protocol.path}@{protocol.revision}/{files}"
        source = {"path": kind_of(Path(protocol.files)), "data_files": {split: url}}

    if not protocol.held_out:
        return datasets.load_dataset(**source, split=split, streaming=streaming)

    # The last rows of "train" are the validation split
    is_train = split == "train"
    if not streaming:
        rows = f"[:-{protocol.held_out}]" if is_train else f"[-{protocol.held_out}:]"
        return datasets.load_dataset(**source, split="train" + rows, streaming=False)

    # A stream does not know its end: the protocol says how many rows it has
    stream = datasets.load_dataset(**source, split="train", streaming=True)
    num_train = protocol.rows - protocol.held_out
    return stream.take(num_train) if is_train else stream.skip(num_train)


def splits_of(name_or_path: str) -> tuple[str, ...]:
    """The splits of a corpus. Local files that are no folder are one text, which has none.

    Raises:
        ValueError: nothing has this name, or it holds no files that can be read.
    """
    if name_or_path in PROTOCOLS:
        return tuple(PROTOCOLS[name_or_path].splits)

    # A folder has those that the names of its files tell
    files = find_files(name_or_path, "train")
    if files:
        return tuple(files) if Path(name_or_path).expanduser().is_dir() else ()

    return splits_of_repository(**repository_arguments(name_or_path))


@functools.cache
def splits_of_repository(path: str, name: str | None) -> tuple[str, ...]:
    """The splits of a dataset on the Hub, which is asked once in a process."""
    # The builder of a dataset that is in the cache knows its splits without the Hub
    splits = datasets.load_dataset_builder(path, name).info.splits
    return tuple(splits or datasets.get_dataset_split_names(path, name))


def load_files_or_repository(name: str, split: str, streaming: bool) -> Corpus:
    """Local files, or a dataset of the Hub where there are none of this name.

    Raises:
        ValueError: a file cannot be read (the message gives its fault), or nothing has this name.
    """
    files = find_files(name, split)
    if not files:
        return datasets.load_dataset(**repository_arguments(name), split=split, streaming=streaming)

    # A fault of a stream would show only when its rows are read
    source = reading(name, files)
    if streaming:
        check_texts(files, CHECKED_BYTES)

    # Quiet, since a fault is reported once, with the name of the file
    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(logging.CRITICAL)
    try:
        return datasets.load_dataset(**source, split=split, streaming=streaming)
    except (DatasetsError, pa.ArrowInvalid) as error:
        # A full disk is not a fault of the file
        cause = error.__cause__ or error
        if isinstance(cause, Exception) and why_not_written(cause):
            raise cause from None

        # The fault of the first file that has one, or else the words of `datasets`
        check_texts(files)
        raise ValueError(f"{name} cannot be read: {one_line(cause)}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"{name} has no rows in split {split!r}. Give files with text in them.") from error
    finally:
        datasets_logging.set_verbosity(level)


def check_texts(files: dict[str, list[Path]], most_bytes: int | None = None) -> None:
    """Raise ValueError with the fault of the first file that, or whose first `most_bytes`, cannot be read."""
    for of_split in files.values():
        for file in of_split:
            if fault := fault_of_text(file, most_bytes):
                raise ValueError(f"{file} {fault}.")


def repository_arguments(name: str) -> dict:
    """The arguments of `datasets.load_dataset` for a dataset of the Hub.

    Raises:
        ValueError: the name cannot be the name of one.
    """
    # "owner/name:config". A name with a known suffix was meant as a file.
    repository, _, config = name.partition(":")
    path = Path(name).expanduser()
    is_file_name = path.suffix and kind_of(path)
    if is_file_name or repository.count("/") != 1 or path.is_absolute():
        raise ValueError(
            f"No corpus {name!r}: it is no protocol ({', '.join(PROTOCOLS)}), no such file or folder exists, "
            "and a dataset on the Hub is written owner/name or owner/name:config."
        )
    return {"path": repository, "name": config or None}


def select_text(dataset: Corpus, text_column: str | None, name: str) -> Corpus:
    """The dataset with one column alone, as "text": the column given, or "text", or the only column of strings.

    Raises:
        ValueError: there is no such column, it is not clear which one it is, or it does not hold text.
    """
    # 1. The name of the column, where it is not given
    types = column_types(dataset)
    candidates = [column for column, of_column in types.items() if of_column == TEXT]
    if not text_column:
        if "text" in types:
            text_column = "text"
        elif len(candidates) == 1:
            text_column = candidates[0]
            tell_column(name, text_column)

    advice = "Write the texts into a column of strings."
    if candidates:
        advice = f"Give text_column, one of {', '.join(candidates)}."
    if text_column not in types:
        fault = "cannot tell which column is the text" if not text_column else f"no column {text_column!r}"
        columns = ", ".join(f"{column} ({of_column})" for column, of_column in types.items())
        raise ValueError(f"{name}: {fault} among {columns or 'none, since it has no rows'}. {advice}")

    # 2. Numbers and lists have no characters. A column may begin with rows without a text
    if types[text_column] not in (TEXT, NOTHING):
        raise ValueError(
            f"{name}: the column {text_column!r} holds {types[text_column]}, but it must hold strings. {advice}"
        )

    # 3. That column alone
    dataset = dataset.select_columns([text_column])
    return dataset if text_column == "text" else dataset.rename_column(text_column, "text")


@functools.cache
def tell_column(name: str, column: str) -> None:
    """Tell once on stderr which column is taken for the text. Of several processes only the first one does."""
    if is_first_process():
        tell(f"{name}: the text is the column {column!r}, the only one of strings. text_column chooses another.")


def column_types(dataset: Corpus) -> dict[str, str]:
    """What every column holds: TEXT, NOTHING, or the name of another type.

    Some streams have no features, so that their first row says it.
    """
    # A feature without a `dtype`, such as a list, is named by its class
    if dataset.features is not None:
        names = {
            column: getattr(feature, "dtype", None) or type(feature).__name__
            for column, feature in dataset.features.items()
        }
    else:
        first_row = next(iter(dataset), {})
        names = {column: type(value).__name__ for column, value in first_row.items()}
    return {column: TYPES.get(name, name) for column, name in names.items()}


def clean_texts(batch: dict[str, list], functions: list[Callable[[str], str]]) -> dict[str, list[str]]:
    """Apply the functions to every document, one after the other. A missing document is empty."""
    texts = [text or "" for text in batch["text"]]
    for function in functions:
        texts = [function(text) for text in texts]
    return {"text": texts}
