"""A file is written whole, in the place that its name leads to, and keeps its permissions."""

import os
import stat
from pathlib import Path

import pytest

from edlm_hf.files import write_atomically


def permissions(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path):
    target, link = tmp_path / "folder" / "page.html", tmp_path / "link.html"
    target.parent.mkdir()
    target.write_bytes(b"before")
    link.symlink_to("folder/page.html")

    write_atomically(link, b"after")
    assert link.is_symlink() and target.read_bytes() == b"after"

    # Of a link that leads nowhere yet, the file is made
    target.unlink()
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_a_file_keeps_its_permissions_and_a_new_one_has_those_of_the_user(tmp_path):
    private = tmp_path / "private"
    private.write_bytes(b"before")
    private.chmod(0o600)
    write_atomically(private, b"after")
    assert private.read_bytes() == b"after" and permissions(private) == 0o600

    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"content")
    finally:
        os.umask(before)
    assert permissions(tmp_path / "new") == 0o640


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"content")
    assert os.read(reader, 100) == b"content" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_a_file_that_somebody_has_open_is_written_into(tmp_path):
    """As `--html /dev/stdout > page.html` is."""
    with open(tmp_path / "page.html", "wb") as page:
        write_atomically(Path(f"/proc/self/fd/{page.fileno()}"), b"content")
        assert os.fstat(page.fileno()).st_size == len(b"content")


def test_a_failure_leaves_the_file_before_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"] and path.read_bytes() == b"before"


def test_the_longest_name_is_written(tmp_path):
    path = tmp_path / (250 * "a")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
