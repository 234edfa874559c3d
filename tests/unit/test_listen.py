import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnid import platform
from omnid.api.listen import Bound
from omnid.errors import Rejected


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, because that of a test is longer than a socket's may be."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def answers(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def refusal(path: Path | str) -> Rejected:
    with pytest.raises(Rejected) as caught, Bound(str(path)):
        pass
    return caught.value


def test_it_makes_a_private_directory_and_leaves_nothing_but_that(directory: Path) -> None:
    path = directory / "run" / "s"
    with Bound(str(path)):
        assert answers(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == []


def test_it_can_be_unlinked_before_its_end(directory: Path) -> None:
    with Bound(str(directory / "s")) as bound:
        bound.unlink()
        assert os.listdir(directory) == []
        (directory / "s").write_text("of somebody else")
    assert (directory / "s").read_text() == "of somebody else"


def test_a_dead_socket_is_replaced(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "s"))
    with Bound(str(directory / "s")):
        assert answers(directory / "s")


@pytest.mark.parametrize("backlog", [8, 0])
def test_a_live_socket_is_left_alone(directory: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(directory / "s"))
        live.listen(backlog)
        # With a backlog of 0 this one fills it, so that the next can't connect.
        waiting.connect(str(directory / "s"))
        assert refusal(directory / "s").code == "already_running"
        assert stat.S_ISSOCK((directory / "s").lstat().st_mode)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_a_foreign_file_is_left_alone(directory: Path, kind: str) -> None:
    place = directory / "s"
    if kind == "file":
        place.write_text("precious")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("/etc/passwd" if kind == "link" else "nowhere")
    before = place.lstat()
    assert refusal(place).code == "foreign_file"
    assert place.lstat().st_ino == before.st_ino


def test_a_socket_of_another_user_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = directory / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))
    own = os.lstat

    def of_another(path: str) -> os.stat_result:
        fields = list(own(path))
        fields[stat.ST_UID] += 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", of_another)
    assert refusal(place).code == "foreign_file"
    monkeypatch.undo()
    assert place.is_socket()


def test_the_socket_of_a_successor_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    with Bound(str(path)):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    with successor:
        assert path.is_socket()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_that_others_can_enter_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    error = refusal(directory / "s")
    assert (error.code, error.fields["mode"]) == ("unsafe_directory", f"{mode:o}")


def test_a_path_that_is_too_long_is_explained_and_the_longest_works(directory: Path) -> None:
    longest = f"{directory}/" + "x" * (platform.SOCKET_PATH_BYTES_MAX - len(str(directory)) - 1)
    error = refusal(longest + "x")
    assert (error.code, error.fields["limit"]) == ("path_too_long", platform.SOCKET_PATH_BYTES_MAX)
    with Bound(longest):
        assert answers(longest)


def test_a_place_that_cant_be_written_is_explained(directory: Path) -> None:
    (directory / "run").write_text("a file where the directory should be")
    assert refusal(directory / "run" / "s").code == "state_unwritable"
