"""A reader of pickles that executes nothing: names in a pickle are never looked up, imported or called.

A pickle is a program, and this is an interpreter of its own for it. A name becomes a ``Name``, which is text. A derived class decides in
``called`` which value stands for the result of a call; where it knows none, an ``Inert`` does. Opcodes that checkpoints and datasets don't
need are refused. Scan a pickle with ``pickle_scan.examine`` first, which limits nesting, lengths and the number of instructions.
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

# Elements, and characters of text, copied from one object into another: a small pickle could copy one very often.
MAX_COPIED = 1 << 18

_LOADS: dict[int, Any] = pickle._Unpickler.dispatch
_UNCHANGED = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE, pickle.NEWTRUE,
    pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT,
    pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET,
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


class Inert:
    """Stands for an object that is not made: its class or the function that was to make it, and what the pickle gave it.

    ``entries`` are those of a dictionary of a class of its own; elements of such a list or set are dropped.
    """

    __slots__ = ("entries", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None
        self.entries: dict[Any, Any] = {}


class OddKey:
    """Stands for a dictionary key that is neither text nor a small number: hashing or comparing it could take forever."""

    def __init__(self, key: object) -> None:
        self.type = type(key).__name__


# Based on the unpickler in Python: the one in C allocates tables whose size the file determines.
class PickleReader(pickle._Unpickler):
    """Reads one pickle from ``file``. Raises pickle.UnpicklingError, ValueError, and any other exception for a damaged pickle."""

    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {opcode[0]: _LOADS[opcode[0]] for opcode in _UNCHANGED}

    def __init__(self, file: io.BytesIO, encoding: str, characters: int = MAX_COPIED) -> None:
        super().__init__(file, encoding=encoding)
        self.elements_left, self.characters_left = MAX_COPIED, characters

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:  # noqa: ARG002
        """The value that stands for the result of a call: for a name that a derived class does not know, an Inert."""
        return Inert(str(name))

    def built(self, target: Any, state: Any) -> None:
        """Called when attributes (``state``) are set on ``target``. Only an Inert keeps them, unless a derived class overrides this."""
        if isinstance(target, Inert):
            target.state = state

    def key(self, key: Any) -> Any:
        """The key of a dictionary or element of a set, replaced by an OddKey if hashing it is not safe."""
        # From 2^61 - 1 on, many numbers have the same hash.
        plain = key is None or isinstance(key, (str, bool)) or (isinstance(key, int) and abs(key) < (1 << 61) - 1)
        return key if plain else OddKey(key)

    def copied(self, values: Any) -> Any:
        """``values`` (a container or text), which are copied. Raises pickle.UnpicklingError if all copies together are too large."""
        if isinstance(values, str):
            self.characters_left -= len(values)
        else:
            self.elements_left -= len(values)
        if min(self.elements_left, self.characters_left) < 0:
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
        if isinstance(target, Inert):
            target = target.entries
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
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(self.key, items))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError("it adds elements to an object that is not a set")

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _append_items(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError("it appends to an object that is not a list")

    def _frozen_set(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(self.key, items)))

    def _call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._result(self.stack[-1], arguments)

    def _call_with_keywords(self) -> None:
        self.stack.pop()
        self._call()

    def _call_marked(self) -> None:
        """OBJ: a class and its arguments after a mark."""
        name, *arguments = self.pop_mark()
        self.stack.append(self._result(name, tuple(arguments)))

    def _call_named(self) -> None:
        """INST: as OBJ, with the name in the instruction."""
        module, name = (self.readline()[:-1].decode("utf-8", "replace") for _ in range(2))
        arguments = self.pop_mark()
        self.stack.append(self._result(self.find_class(module, name), tuple(arguments)))

    def _result(self, name: Any, arguments: Any) -> Any:
        if isinstance(name, Inert):  # what an inert call returned is called in turn
            return Inert(name.name)
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls an object that is not a named function")
        return self.called(name, arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        self.built(self.stack[-1], state)

    def _byte_array(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(self.read(min(length, sys.maxsize)))  # pickle's own version allocates before it checks the length

    dispatch |= {
        pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _dict, pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set, pickle.APPEND[0]: _append, pickle.APPENDS[0]: _append_items, pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call, pickle.NEWOBJ_EX[0]: _call_with_keywords, pickle.OBJ[0]: _call_marked, pickle.INST[0]: _call_named,
        pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _byte_array,
    }  # fmt: skip
