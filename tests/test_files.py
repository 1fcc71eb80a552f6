"""ddpm_jax.files: a file is whole or not there."""

import os
import stat

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    for text in ("one", "two"):
        assert write_atomically(path, lambda p, text=text: p.write_text(text)) == path
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_the_writer_sees_the_suffix_and_the_old_file(tmp_path):
    """The format of a picture is told from the suffix; the old file stands until the new one is whole."""
    path = tmp_path / "a.png"
    path.write_text("old")

    def write(temporary):
        assert temporary.suffix == ".png" and temporary.parent == tmp_path and temporary != path
        assert path.read_text() == "old"
        temporary.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    path = write_atomically(tmp_path / "a", lambda p: p.write_text(""))
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize(
    ("failure", "seen"), [(RuntimeError("bug"), RuntimeError), (OSError(28, "No space left on device"), UserError)]
)
def test_a_failing_writer_leaves_the_old_file_alone(tmp_path, failure, seen):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise failure

    with pytest.raises(seen, match=r"bug|a\.txt cannot be written: No space left on device"):
        write_atomically(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("below", ["a.txt", "folder/a.txt"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, below):
    """Below a regular file nobody can write, root included."""
    blocker = tmp_path / "file"
    blocker.write_text("I am no folder")
    with pytest.raises(UserError, match=r"file/.*a\.txt cannot be written"):
        write_atomically(blocker / below, lambda p: p.write_text("x"))
    assert blocker.read_text() == "I am no folder"


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.txt" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(tmp_path / "a.txt", lambda p: p.write_text("x"))
    assert os.listdir(tmp_path) == ["a.txt"]
