"""cache.py: a folder that others can write to is none, and neither is what others may have put there."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnet_deploy.files import cache

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that every user can enter, which pytest's folders are not."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache._complain.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (place := Path(folder).resolve() / "home").mkdir(mode=0o755)
        monkeypatch.setenv("HOME", str(place))
        yield place
    cache._complain.cache_clear()


def test_it_is_made_for_the_user_alone_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        place = cache.folder("native")
        assert place == home / ".cache" / "cnet-deploy" / "native"
        cache.write(place, "entry", b"content")
    finally:
        os.umask(before)
    for part in (place, place.parent, place.parent.parent):
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "entry").stat().st_mode) == 0o600
    assert cache.read(place, "entry") == b"content" and cache.read(place, "other") is None


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_a_relative_place_is_ignored(variable: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "here")
    monkeypatch.chdir(tmp_path)
    assert cache.folder("native") == (None if variable == "HOME" else home / ".cache" / "cnet-deploy" / "native")
    assert not (tmp_path / "here").exists()


def open_to_all(home: Path) -> None:
    home.chmod(0o777)


def cache_open_to_a_group(home: Path) -> None:
    (home / ".cache" / "cnet-deploy" / "native").mkdir(parents=True)
    (home / ".cache" / "cnet-deploy" / "native").chmod(0o770)


def anothers_home(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)


def anothers_cache(home: Path) -> None:
    (home / ".cache" / "cnet-deploy").mkdir(parents=True)
    os.chown(home / ".cache" / "cnet-deploy", NOBODY, NOBODY)


def a_link_into_an_open_folder(home: Path) -> None:
    (open_folder := home.parent / "open").mkdir()
    open_folder.chmod(0o777)
    (home / ".cache").symlink_to(open_folder / "cache")


def a_link_through_an_open_folder(home: Path) -> None:
    (open_folder := home.parent / "open").mkdir()
    (home.parent / "mine").mkdir()
    (open_folder / "link").symlink_to(home.parent / "mine")
    open_folder.chmod(0o777)
    (home / ".cache").symlink_to("../open/link")


def a_ring(home: Path) -> None:
    (home / ".cache").symlink_to(".cache")


OPEN = [open_to_all, cache_open_to_a_group, a_link_into_an_open_folder, a_link_through_an_open_folder, a_ring]
OTHERS = [pytest.param(change, marks=as_root) for change in (anothers_home, anothers_cache)]


@pytest.mark.parametrize("change", [*OPEN, *OTHERS])
def test_a_folder_that_others_can_change_is_not_used_and_said_once(
    change: Callable[[Path], None], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(home)
    with caplog.at_level(logging.WARNING):
        assert cache.folder("native") is None and cache.folder("native") is None
    (said,) = caplog.messages
    assert said.startswith(f"the cache {home}/.cache/cnet-deploy/native is not used: ")
    assert any(words in said for words in ("other users can write to", "belongs to another user", "too many links"))


def test_a_folder_of_ones_own_in_an_open_one_with_the_sticky_bit(home: Path) -> None:
    home.chmod(0o1777)
    assert cache.folder("native") is not None


def test_what_nobody_can_reach_may_be_open(home: Path) -> None:
    home.chmod(0o700)
    (home / ".cache").mkdir()
    (home / ".cache").chmod(0o777)
    assert cache.folder("native") is not None


def test_a_link_that_is_safe_is_followed(home: Path) -> None:
    (home.parent / "large").mkdir()
    (home / ".cache").symlink_to("../large")
    assert cache.folder("native") is not None and (home.parent / "large" / "cnet-deploy" / "native").is_dir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    (path.parent / "other").write_bytes(b"content")
    path.symlink_to("other")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, cache.MAX_BYTES + 1)


def shared(path: Path) -> None:
    path.write_bytes(b"content")
    path.chmod(0o666)


def anothers(path: Path) -> None:
    path.write_bytes(b"content")
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("make", [pipe, endless, link, large, shared, Path.mkdir, pytest.param(anothers, marks=as_root)])
def test_what_is_no_entry_is_not_read_and_is_replaced(make: Callable[[Path], None], home: Path) -> None:
    place = cache.folder("native")
    assert place is not None
    make(place / "entry")
    assert cache.read(place, "entry") is None
    cache.write(place, "entry", b"new")
    if make is not Path.mkdir:
        assert make in (shared, anothers) or cache.read(place, "entry") == b"new"


def test_a_file_in_the_way(home: Path) -> None:
    (home / ".cache").write_text("")
    assert cache.folder("native") is None
