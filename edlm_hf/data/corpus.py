"""`load_corpus`: any text corpus as a dataset with the single column "text", one document per row.

By the name of a protocol, from the Hub, or from local files; streaming or not.
"""

from collections.abc import Callable
from glob import glob
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher

import edlm_hf
from edlm_hf.data.protocols import PROTOCOLS, Protocol

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}

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
            - a local file (.parquet, .jsonl, .json, .txt), a pattern of such files, or a folder of them. A file or
              pattern *is* the split asked for; in a folder the splits are told by the names of files or subfolders, as
              `datasets` does. A .txt file is one document, in JSON and parquet every row is one;
            - a dataset on the Hub, "owner/name" or "owner/name:config".
        split: "train", "validation" or "test" for a protocol; otherwise whatever `datasets` takes, "train[:1%]" say.
        streaming: an `IterableDataset`, read while it is used, instead of a `Dataset` on disk. The validation split of
            a protocol with held-out rows is then reached only by reading past all rows before it.
        text_column: the column with the text. By default that of the protocol; else "text", or the only column of
            strings.
        normalize: applied to every document last, for example `edlm_hf.tokenization.normalize_text8`.

    Raises:
        ValueError: nothing is known by that name; the protocol has no such split; files of several kinds in a folder;
            no text column, or none that could be told.
    """
    protocol = PROTOCOLS.get(name_or_path)
    if protocol is not None:
        dataset = _load_protocol(protocol, split, streaming)
    else:
        dataset = datasets.load_dataset(**_locate(name_or_path, split), split=split, streaming=streaming)
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
        source = {"path": BUILDERS[Path(protocol.files).suffix], "data_files": {split: url}}
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
    return name_or_path in PROTOCOLS or "data_files" not in _locate(name_or_path, "train")


def _locate(name_or_path: str, split: str) -> dict:
    """The arguments of `datasets.load_dataset` that say where the corpus is and how its files are read."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        kinds = {BUILDERS[file.suffix] for file in path.rglob("*") if file.suffix in BUILDERS}
        if len(kinds) != 1:
            raise ValueError(
                f"The folder {name_or_path} holds {' and '.join(sorted(kinds)) or 'no'} files, but one kind is needed "
                f"of {', '.join(BUILDERS)}. Give a pattern instead, such as {name_or_path.rstrip('/')}/*.txt."
            )
        return {"path": str(path)} | _reading(kinds.pop())
    files = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))
    if files:
        kinds = {BUILDERS.get(Path(file).suffix) for file in files}
        if len(kinds) != 1 or None in kinds:
            raise ValueError(f"{name_or_path} is not of one kind of {', '.join(BUILDERS)}: {', '.join(files[:5])}.")
        builder = kinds.pop()
        return {"path": builder, "data_files": {split.partition("[")[0]: files}} | _reading(builder)
    repository, _, config = name_or_path.partition(":")
    if path.suffix in BUILDERS or repository.count("/") != 1 or path.is_absolute():
        raise ValueError(
            f"No corpus {name_or_path!r}: it is no protocol ({', '.join(PROTOCOLS)}), no such file or folder exists, "
            "and a dataset on the Hub is written owner/name or owner/name:config."
        )
    return {"path": repository, "name": config or None}


def _reading(builder: str) -> dict:
    return {"sample_by": "document"} if builder == "text" else {}


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
