"""Fetching a model from a hub that breaks off and lies: nothing unchecked gets into the cache, nothing comes twice."""

import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnid import weights
from omnid.ctl import hub as hub_module
from omnid.ctl import pull as pull_module
from omnid.ctl.context import World
from omnid.ctl.hub import Hub
from omnid.ctl.pull import Pull
from omnid.ctl.render import Screen
from omnid.errors import OmnidError
from omnid.patterns import WEIGHTS_NAME
from omnid.weights import Weights
from tests.fakes.hub import REVISION
from tests.fakes.hub import Hub as FakeHub
from tests.fakes.hub import hub as serve

LARGE = bytes(range(256)) * 400
FILES = {"config.json": b"{}", "model.safetensors": LARGE, "sub/tokenizer.model": b"tokens"}
NOW_MS = 1_795_000_000_000


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with serve() as made:
        made.files = dict(FILES)
        made.large = {"model.safetensors"}
        yield made


class Place:
    """A cache, and a person who fetches into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slept_s: list[float] = []
        self.is_interrupted = False
        self.stderr = io.StringIO()

    def pull(self, fake: FakeHub, *only: str, name: str = "test/tiny", revision: str = "main") -> Weights:
        world = World({}, io.StringIO(), io.StringIO(), self.stderr, _nobody, lambda: NOW_MS, lambda: 0.0, self._sleep)
        screen = Screen(world.stdout, world.stderr, {})
        return Pull(Hub(fake.url), str(self.root), name, world, screen).run(revision, only)

    def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        if self.is_interrupted:
            raise KeyboardInterrupt

    def fails(self, fake: FakeHub, code: str, *only: str, **more: str) -> str:
        with pytest.raises(OmnidError) as caught:
            self.pull(fake, *only, **more)
        assert caught.value.code == code
        return str(caught.value.what)


def _nobody() -> None:
    raise AssertionError("nothing needs the daemon")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "models")


def content(found: Weights) -> dict[str, bytes]:
    return {file.path: Path(found.directory, file.path).read_bytes() for file in found.files}


def gets(fake: FakeHub) -> list[tuple[str, str]]:
    """What was asked for, without the listing: the ends of paths, and ranges."""
    return [(path.rpartition(f"{REVISION}/")[2], asked) for path, asked in fake.asked if "/resolve/" in path]


def test_a_model_comes_whole_and_is_found(place: Place, fake: FakeHub) -> None:
    found = place.pull(fake)
    assert content(found) == FILES
    assert found == weights.find(str(place.root), "test/tiny")
    assert (found.revision, found.size_bytes, found.pulled_at_ms) == (REVISION, len(LARGE) + 8, NOW_MS)
    assert weights.look(found) == []
    assert weights.cached(str(place.root)) == [found]
    assert place.root.stat().st_mode & 0o777 == 0o700
    assert "model.safetensors (2 of 3)" in place.stderr.getvalue()


def test_what_is_there_is_not_fetched_again(place: Place, fake: FakeHub) -> None:
    place.pull(fake)
    before = len(gets(fake))
    place.pull(fake)
    assert len(gets(fake)) == before


def test_it_goes_on_where_it_broke_off(place: Place, fake: FakeHub) -> None:
    fake.files = {"model.safetensors": LARGE}
    fake.cut_at = [1000, 50_000]
    assert content(place.pull(fake)) == fake.files
    assert gets(fake) == [
        ("model.safetensors", ""),
        ("model.safetensors", "bytes=1000-"),
        ("model.safetensors", "bytes=51000-"),
    ]
    assert place.slept_s == [1.0, 1.0]


def test_another_run_goes_on_where_the_last_was_ended(place: Place, fake: FakeHub) -> None:
    fake.files = {"model.safetensors": LARGE}
    fake.cut_at = [1000]
    place.is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        place.pull(fake)
    place.is_interrupted = False
    assert weights.find(str(place.root), "test/tiny") is None
    assert content(place.pull(fake)) == fake.files
    assert gets(fake)[-1] == ("model.safetensors", "bytes=1000-")


def test_a_hub_that_begins_anew_each_time_is_no_endless_loop(place: Place, fake: FakeHub) -> None:
    fake.files, fake.ranges = {"model.safetensors": LARGE}, False
    fake.cut_at = [1000, 2000]
    assert content(place.pull(fake)) == fake.files
    fake.files = {"model.safetensors": LARGE + b"more"}
    fake.cut_at = [1000] * 20
    assert "it broke off" in place.fails(fake, "hub_down")
    assert len(fake.cut_at) == 20 - 1 - pull_module.TRIES_MAX


def test_what_has_another_checksum_is_thrown_away_and_fetched_once_more(place: Place, fake: FakeHub) -> None:
    fake.lies = ["model.safetensors", "config.json"]
    assert content(place.pull(fake)) == FILES
    assert "model.safetensors: its checksum is wrong; it is fetched anew" in place.stderr.getvalue()


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_hub_that_lies_twice_is_not_believed(place: Place, fake: FakeHub, path: str) -> None:
    fake.lies = [path] * 2
    assert "its checksum is another" in place.fails(fake, "hub_lies")
    assert weights.find(str(place.root), "test/tiny") is None


def test_more_than_it_says_is_not_taken(place: Place, fake: FakeHub) -> None:
    honest = fake.listing()
    fake.listing = lambda: honest
    fake.files["model.safetensors"] += b"more"
    assert f"longer than {len(LARGE)} bytes" in place.fails(fake, "hub_lies")


def test_a_hub_that_is_away_is_tried_a_few_times(place: Place, fake: FakeHub) -> None:
    fake.status = [503]
    assert "HTTP 503" in place.fails(fake, "hub_down")
    fake.status = [200]
    assert "can't be read" in place.fails(fake, "hub_refused")
    fake.shutdown()
    fake.server_close()
    assert "refused" in place.fails(fake, "hub_down")


def test_what_a_hub_does_not_have_is_said(place: Place, fake: FakeHub) -> None:
    assert "HTTP 404" in place.fails(fake, "hub_refused", name="test/other")
    assert "HTTP 404" in place.fails(fake, "hub_refused", revision="v2")
    assert "no file like *.gguf" in place.fails(fake, "hub_refused", "*.gguf")
    fake.files = {"README.md": b"x", "pickle.bin": b"x"}
    assert "0 files" in place.fails(fake, "hub_refused")
    assert not any("/resolve/" in path for path, _ in fake.asked)


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "../evil.json", "size": 1, "blobId": "0" * 40},
        {"rfilename": "/etc/evil.json", "size": 1, "blobId": "0" * 40},
        {"rfilename": "a\\evil.json", "size": 1, "blobId": "0" * 40},
        {"rfilename": "evil.json", "size": -1, "blobId": "0" * 40},
        {"rfilename": "evil.json", "size": 1},
        {"rfilename": "evil.json", "blobId": "0" * 40},
        {"rfilename": None, "size": 1, "blobId": "0" * 40, "lfs": 3},
        "evil.json",
    ],
)
def test_a_listing_that_leads_elsewhere_or_is_none_is_refused(place: Place, fake: FakeHub, entry: object) -> None:
    fake.more = [entry]
    if isinstance(entry, dict) and entry.get("rfilename") is None:
        fake.more[0]["rfilename"] = "x.json"
    place.fails(fake, "hub_refused")
    assert not [path for path in place.root.rglob("*") if path.is_file() and path.name != ".lock"]


def test_where_it_leads_is_followed_but_never_to_a_file_here(place: Place, fake: FakeHub) -> None:
    with serve() as other:
        fake.redirect_to = f"{other.url}/test/tiny/resolve/{REVISION}/config.json"
        other.files = fake.files = {"config.json": b"{}"}
        assert content(place.pull(fake)) == {"config.json": b"{}"}
    fake.files, fake.redirect_to = {"config.json": b"[]"}, "file:///etc/hostname"
    place.fails(fake, "hub_refused")


def test_tls_is_never_left() -> None:
    request = hub_module.urllib.request.Request("https://hub.example/x")
    with pytest.raises(OSError, match="TLS"):
        hub_module._SafeRedirects().redirect_request(
            request,
            io.BytesIO(),
            302,
            "Found",
            {},
            "http://hub.example/x",
        )


def test_only_some_files_and_later_the_others(place: Place, fake: FakeHub) -> None:
    fake.files |= {"small-q4.gguf": b"q4", "small-q8.gguf": b"q8"}
    assert content(place.pull(fake, "*q4.gguf", "config.json")).keys() == {"small-q4.gguf", "config.json"}
    assert content(place.pull(fake, "*q8.gguf")).keys() == {"small-q4.gguf", "small-q8.gguf", "config.json"}


def test_a_newer_version_takes_the_place_of_the_older(place: Place, fake: FakeHub) -> None:
    old = place.pull(fake)
    fake.revision = "f" * 40
    new = place.pull(fake)
    assert [one.revision for one in weights.cached(str(place.root))] == [new.revision]
    assert not Path(old.directory).exists()


def test_damage_is_named_and_mended(place: Place, fake: FakeHub) -> None:
    found = place.pull(fake)
    path = Path(found.directory, "model.safetensors")
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.look(found) == []  # Nobody can see that without reading it.
    seen: list[int] = []
    verified = weights.verify(found, NOW_MS + 5, seen.append)
    assert (verified.damaged, verified.verified_at_ms) == (("model.safetensors",), NOW_MS + 5)
    assert sum(seen) == found.size_bytes
    assert weights.find(str(place.root), "test/tiny") == verified
    assert weights.look(verified) == ["model.safetensors"]
    mended = place.pull(fake)
    assert weights.look(mended) == []
    assert [path for path, _ in gets(fake)].count("model.safetensors") == 2
    Path(found.directory, "config.json").unlink()
    assert weights.look(mended) == ["config.json"]
    assert weights.verify(mended, NOW_MS).damaged == ("config.json",)


def test_two_at_once_do_not_meet(place: Place, fake: FakeHub) -> None:
    place.pull(fake)
    with (place.root / "test--tiny" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.fails(fake, "cache_busy")
    place.pull(fake)


def test_no_room_is_seen_before_anything_is_fetched(
    place: Place, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module.platform, "free_bytes", lambda _: 1000)
    assert "1000 are free" in place.fails(fake, "pull_no_room")
    assert not gets(fake)


def test_a_cache_that_can_not_be_written_is_said(place: Place, fake: FakeHub) -> None:
    place.root.write_text("a file")
    assert str(place.root) in place.fails(fake, "cache_unwritable")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 3}', '{"files": [{"path": "../x"}]}'])
def test_a_manifest_that_is_none_is_no_model(place: Place, fake: FakeHub, text: str) -> None:
    Path(place.pull(fake).directory, "manifest.json").write_text(text)
    assert weights.find(str(place.root), "test/tiny") is None
    assert weights.cached(str(place.root)) == []
    assert weights.look(place.pull(fake)) == []


def test_a_name_is_an_owner_and_a_name() -> None:
    assert f"^{weights.NAME.pattern}$" == WEIGHTS_NAME
    for name in ("tiny", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c"):
        assert weights.find("/nowhere", name) is None
        with pytest.raises(ValueError, match="OWNER/NAME"):
            weights.directory_of("/nowhere", name)
