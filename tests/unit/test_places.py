"""Which destination a queue has: that of the config as it is now, or the desktop."""

from io import StringIO
from pathlib import Path

import pytest
from msgspec import structs

from omnid.clock import SystemClock
from omnid.flow.notify import Notices
from omnid.flow.places import Places
from omnid.link.desktop import Desktop, DesktopDestination, find_desktop
from omnid.log import Log
from omnid.model import Delivery
from omnid.settings import Config, Destination
from tests.fakes.clock import FakeClock
from tests.unit.test_drain import Place

CHAT = Destination(name="chat", kind="command", argv=("a",))


class House:
    """A config that changes, and what was made of it."""

    def __init__(self) -> None:
        self.config = Config(destination=(CHAT,))
        self.made: list[Destination] = []
        self.desktop = Place()
        self.places = Places(lambda: self.config, FakeClock(), self._make, self.desktop)

    def _make(self, section: Destination) -> Place:
        self.made.append(section)
        return Place()

    def configure(self, *sections: Destination) -> None:
        self.config = structs.replace(self.config, destination=sections)


def test_a_destination_is_made_once_and_again_when_its_section_changes() -> None:
    house = House()
    first = house.places.open("chat")
    assert first is house.places.open("chat")
    assert len(house.made) == 1
    house.configure(structs.replace(CHAT, argv=("b",)))
    second = house.places.open("chat")
    assert second is not first
    assert [section.argv for section in house.made] == [("a",), ("b",)]
    house.configure()
    assert house.places.open("chat") is None
    assert house.places.open("notice/chat") is None
    house.configure(CHAT)
    assert house.places.open("chat") not in (first, second, None)


def test_notices_of_a_place_remember_how_many_they_were_when_it_changes() -> None:
    house = House()
    notices = house.places.open("notice/chat")
    assert isinstance(notices, Notices)
    before = notices.destination
    house.configure(structs.replace(CHAT, argv=("b",)))
    assert house.places.open("notice/chat") is notices
    assert notices.destination is not before
    assert notices.timeout_s == 5.0


def test_the_desktop_takes_notices_and_no_answers_unless_the_config_names_it() -> None:
    house = House()
    notices = house.places.open("notice/desktop")
    assert isinstance(notices, Notices)
    assert notices.destination is house.desktop
    assert house.places.open("desktop") is None
    house.configure(structs.replace(CHAT, name="desktop"))
    assert house.places.open("desktop") is not None
    other = house.places.open("notice/desktop")
    assert isinstance(other, Notices)
    assert other.destination is not house.desktop


def program(path: Path, name: str) -> str:
    file = path / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def test_a_desktop_is_there_where_something_can_be_shown(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    assert find_desktop(environ, is_macos=True) is None
    assert find_desktop({**environ, "DBUS_SESSION_BUS_ADDRESS": "unix:"}, is_macos=False) is None
    found = program(tmp_path, "notify-send")
    assert find_desktop(environ, is_macos=False) is None, "there is no session to show it in"
    assert find_desktop({**environ, "DBUS_SESSION_BUS_ADDRESS": "unix:"}, is_macos=False) == Desktop(found, False)
    runtime = tmp_path / "run"
    runtime.mkdir()
    assert find_desktop({**environ, "XDG_RUNTIME_DIR": str(runtime)}, is_macos=False) is None
    (runtime / "bus").touch()
    assert find_desktop({**environ, "XDG_RUNTIME_DIR": str(runtime)}, is_macos=False) == Desktop(found, False)
    found = program(tmp_path, "osascript")
    assert find_desktop(environ, is_macos=True) == Desktop(found, True)


def test_a_text_is_an_argument_and_never_a_script_or_markup() -> None:
    text = '-e "; do shell script "rm" <b>&'
    assert Desktop("n", False).argv("omnid", text)[-3:] == ("--", "omnid", '-e "; do shell script "rm" &lt;b&gt;&amp;')
    argv = Desktop("o", True).argv("omnid", text)
    assert argv[-3:] == ("--", "omnid", text)
    assert text not in "".join(argv[:-1])


@pytest.mark.anyio
async def test_without_a_desktop_a_notice_is_in_the_log_and_done() -> None:
    said = StringIO()
    log = Log(SystemClock(), lambda text: text, stream=said).logger()
    delivery = Delivery(1, "x", "notice/desktop", "notice", "claude", {"text": "hello"}, 0)
    await DesktopDestination(None, {}, log).send([delivery])
    assert "notice_without_desktop" in said.getvalue()
