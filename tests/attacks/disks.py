"""File systems that are full, of a size that a test wants, or read-only: tmpfs in a mount namespace of its own, gone with its process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.forks import Forks


def namespace() -> tuple[str, ...]:
    """The command that lets a process mount; empty where the system allows it to nobody like us."""
    for flags in ("-m", "-rm"):
        command = ("unshare", flags, "--")
        with_mount = [*command, "sh", "-c", "mount -t tmpfs none /mnt"]
        if shutil.which("unshare") and subprocess.run(with_mount, capture_output=True, check=False).returncode == 0:
            return command
    return ()


class Disk:
    """A place to mount small file systems at, and the process that sees them."""

    def __init__(self, forks: Forks, place: Path) -> None:
        self.forks, self.place = forks, place
        place.mkdir(exist_ok=True)

    @property
    def seen(self) -> Path:
        """The place as this process reaches it."""
        return self.forks.inside(self.place)

    def mount(self, size: int | str, inodes: int = 200) -> None:
        """A fresh, empty file system of so many bytes."""
        self.unmount()
        self.forks.shell(f"mount -t tmpfs -o size={size},nr_inodes={inodes} none {self.place}")

    def unmount(self) -> None:
        self.forks.shell(f"umount {self.place} 2>&-; true")

    def read_only(self) -> None:
        self.forks.shell(f"mount -o remount,ro {self.place}")

    def leave(self, room: int) -> None:
        """Fill it until ``room`` bytes are left, in whole pages."""
        (self.seen / ".filling").touch()
        found = os.statvfs(self.seen)
        (self.seen / ".filling").write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - room)))

    def no_inodes(self) -> None:
        """Leave room for bytes, and none for names."""
        number = 0
        try:
            while True:
                (self.seen / f".filling{number}").touch()
                number += 1
        except OSError:
            return

    def content(self) -> dict[str, bytes]:
        """All files, by their path, without what fills it."""
        return {
            str(path.relative_to(self.seen)): path.read_bytes()
            for path in self.seen.rglob("*")
            if path.is_file() and not path.name.startswith(".filling")
        }
