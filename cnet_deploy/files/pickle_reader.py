"""A reader of pickles that executes nothing: names in a pickle are never looked up, imported or called.

A name becomes a ``Name``. A derived class decides in ``called`` which inert value stands for the result of a call. Opcodes that
checkpoints and datasets don't need are refused. Scan a pickle with ``pickle_scan.examine`` first, which limits nesting, lengths and the
number of instructions.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_COPIED = 1 << 20  # elements and bytes copied from one container into another; a small pickle could copy one very often

_LOADS: dict[int, Any] = pickle._Unpickler.dispatch
_UNCHANGED = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE, pickle.NEWTRUE,
    pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT,
    pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.EMPTY_SET,
    pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GLOBAL,
    pickle.STACK_GLOBAL, pickle.PERSID, pickle.BINPERSID,
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A function, class or constant that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class OddKey:
    """Stands for a dictionary key that is neither text nor a small number: hashing or comparing it could take forever."""

    def __init__(self, key: object) -> None:
        self.type = type(key).__name__


# Based on the unpickler in Python: the one in C allocates tables whose size the file determines.
class PickleReader(pickle._Unpickler):
    """Reads one pickle from ``file``. Raises pickle.UnpicklingError, ValueError, and any other exception for a damaged pickle."""

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {opcode[0]: _LOADS[opcode[0]] for opcode in _UNCHANGED}

    def __init__(self, file: io.BytesIO, encoding: str, copies: int = MAX_COPIED) -> None:
        super().__init__(file, encoding=encoding)
        self.left = copies

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        """The value that stands for the result of a call. Raises pickle.UnpicklingError for an unknown name."""
        raise NotImplementedError

    def built(self, target: Any, state: Any) -> None:
        """Called when attributes (``state``) are set on ``target``. Ignored unless a derived class overrides it."""

    def key(self, key: Any) -> Any:
        """The key of a dictionary or element of a set, replaced by an OddKey if hashing it is not safe."""
        # From 2^61 - 1 on, many numbers have the same hash.
        plain = key is None or isinstance(key, (str, bool)) or (isinstance(key, int) and abs(key) < (1 << 61) - 1)
        return key if plain else OddKey(key)

    def copied(self, values: Any) -> Any:
        """``values``, which are copied into another container. Raises pickle.UnpicklingError if all copies together are too large."""
        self.left -= len(values)
        if self.left < 0:
            raise pickle.UnpicklingError("it copies its contents too often")
        return values

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            opcode = next((known.name for known in pickletools.opcodes if ord(known.code) == error.args[0]), f"{error.args[0]}")
            raise pickle.UnpicklingError(f"it has the opcode {opcode}, which files of this kind do not have") from None

    def find_class(self, module: str, name: str) -> Name:
        return Name(module, name)

    def persistent_load(self, saved: Any) -> Any:  # noqa: ARG002
        raise pickle.UnpicklingError("it refers to something outside of it by a persistent id")

    def _fill(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets entries of an object that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def _set_item(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._fill(self.stack[-1], items)

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(self.stack[-1], items)

    def _add_items(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise pickle.UnpicklingError("it adds elements to an object that is not a set")
        self.stack[-1].update(map(self.key, items))

    def _frozen_set(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(self.key, items)))

    def _call(self) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1]
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls an object that is not a named function")
        self.stack[-1] = self.called(name, arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        self.built(self.stack[-1], state)

    def _byte_array(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(self.read(min(length, sys.maxsize)))  # pickle's own version allocates before it checks the length

    dispatch |= {
        pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _dict, pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set, pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _byte_array,
    }  # fmt: skip
