"""ddpm_jax.files: a file is whole or not there."""

import os
import stat
import time

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.files import delete_folder, new_folder, scratch_folder, together, write_atomically


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


def write(path, text="new"):
    return write_atomically(path, lambda p: p.write_text(text))


def test_together_is_all_or_none(tmp_path):
    """Nothing shows before the end; where one fails, the old files stand."""
    write(tmp_path / "a.txt", "old")
    with together():
        assert write(tmp_path / "a.txt") == tmp_path / "a.txt"
        write(tmp_path / "b.txt")
        assert (tmp_path / "a.txt").read_text() == "old" and not (tmp_path / "b.txt").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new", "b.txt": "new"}
    with pytest.raises(RuntimeError), together():
        write(tmp_path / "a.txt", "newer")
        write(tmp_path / "c.txt")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new", "b.txt": "new"}
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory"), together():
        write(tmp_path / "c.txt")
        write(tmp_path / "d.txt")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "d.txt"]
    write(tmp_path / "e.txt")
    assert (tmp_path / "e.txt").exists()


def test_a_new_folder_is_there_whole(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    with new_folder(tmp_path / "deep" / "a") as made:
        write(made / "inside" / "x.txt")
        assert not (tmp_path / "deep" / "a").exists()
    assert os.listdir(tmp_path / "deep") == ["a"] and (tmp_path / "deep" / "a" / "inside" / "x.txt").exists()
    assert stat.S_IMODE((tmp_path / "deep" / "a").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    for failure, seen in ((RuntimeError, RuntimeError), (OSError(28, "No space left on device"), UserError)):
        with pytest.raises(seen), new_folder(tmp_path / "deep" / "b") as made:
            write(made / "x.txt")
            raise failure
    with pytest.raises(UserError, match="a cannot be written"), new_folder(tmp_path / "deep" / "a") as made:
        write(made / "y.txt")
    assert os.listdir(tmp_path / "deep") == ["a"] and os.listdir(tmp_path / "deep" / "a") == ["inside"]


def test_folders_that_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic link"):
        delete_folder(tmp_path / "link")
    delete_folder(tmp_path / "a")
    with scratch_folder() as folder:
        write(folder / "x.txt")
        assert tmp_path in folder.parents
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    """Unless it is somebody's who lives, or was begun a moment ago, or only looks like it."""
    hours_ago = time.time() - 9000
    foreign = [".a-abcdefgh.txt", ".a-abcdefgh.partial.md", ".ab-abcdefgh.partial.txt", ".a-12345678.partial.txt"]
    for name in (*foreign, ".a-abcdefgh.partial.txt"):
        (tmp_path / name).touch()
        if name != foreign[-1]:  # which is of this moment
            os.utime(tmp_path / name, (hours_ago, hours_ago))

    def other(path):
        os.utime(path, (hours_ago, hours_ago))
        write(tmp_path / "a.txt")
        assert path.exists()

    write_atomically(tmp_path / "a.txt", other)
    assert set(os.listdir(tmp_path)) == {*foreign, "a.txt"}
    killed = tmp_path / ".f-abcdefgh.partial"
    killed.mkdir()
    (killed / "x").touch()
    os.utime(killed, (hours_ago, hours_ago))
    with new_folder(tmp_path / "f"):
        pass
    assert set(os.listdir(tmp_path)) == {*foreign, "a.txt", "f"}
