"""Find the sets of weights in what a file holds, choose one, and give its tensors the original's names.

A set of weights is a mapping of names to tensors, at any key of the file and a few levels deep. What wraps a network adds words to the
names, at the beginning or in the middle: those are removed. What else lies beside the network is a companion, and left out.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnet_deploy.checkpoints.dialects import DIALECTS
from cnet_deploy.checkpoints.dialects.base import Dialect
from cnet_deploy.checkpoints.tensors import TYPES, StoredTensor
from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.files.pickle_arrays import StoredArray
from cnet_deploy.files.pickle_reader import Inert, Name, OddKey

MAX_TENSORS = 20_000  # the largest of the paper's networks have some 2,000
_MAX_NAME = 1000  # characters of a tensor's name
_MAX_KEY = 200  # characters of a key whose dictionary is searched
_MOST_NETWORKS = 32  # in one mapping
_DEPTH = 4  # levels of containers that are searched
_MOST_ENTRIES = 64  # of a list that is searched
_ITSELF = "the file itself"
# Of DataParallel and DistributedDataParallel, torch.compile, FSDP (two versions), activation checkpointing, DeepSpeed.
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"))
# Buffers that tools put into every layer, or beside the network, and losses and metrics with numbers of their own.
_COUNTERS = frozenset(("total_ops", "total_params", "n_averaged"))  # thop; torch.optim.swa_utils
_COMPANIONS = frozenset(
    ("criterion", "criteria", "loss", "loss_fn", "loss_func", "loss_function", "metric", "metrics", "train_acc", "train_metrics",
     "val_acc", "val_metrics", "test_acc", "test_metrics", "accuracy")
)  # fmt: skip
_KINDS = {
    "NoneType": "nothing", "bool": "a truth value", "int": "a number", "float": "a number", "str": "a text", "bytes": "bytes",
    "list": "a list", "tuple": "a list", "set": "a set", "frozenset": "a set", "dict": "a dictionary", "OrderedDict": "a dictionary",
    "StoredTensor": "a tensor", "StoredArray": "an array", "ArrayType": "a type of numbers",
}  # fmt: skip


@dataclass(frozen=True)
class WeightSet:
    """One set of weights. ``key`` is its place in the file: keys joined by dots, "" for the file itself.

    ``names`` has the name in ``entries`` of each tensor by its own name without wrappers, ``masks`` that of its mask where it was pruned
    with torch.nn.utils.prune. ``companions`` are names of tensors that are left out. ``dialect`` is None for another network.
    ``twice`` has two of its tensors that are one once wrappers are removed, if there are such.
    """

    key: str
    entries: Mapping[Any, Any] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    masks: Mapping[str, str] = field(repr=False)
    companions: tuple[str, ...] = ()
    dialect: Dialect | None = None
    twice: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its key, or words for the file itself."""
        return self.key or _ITSELF

    @property
    def bytes(self) -> int:
        """The size of its tensors as they are stored."""
        return sum(_size(self.entries[name]) for name in self.names.values())

    def words(self) -> str:
        """For messages."""
        return f"{self.place} ({len(self.names)} tensors)"


def find(loaded: Any) -> list[WeightSet]:
    """All sets of weights in a loaded object: those of the family, and other mappings of two or more dotted names to tensors.

    Where there are none, every mapping of a name to a tensor counts.
    """
    sets: list[WeightSet] = []
    others: list[WeightSet] = []
    for key, entries in _mappings(loaded):
        tensors = dict.fromkeys(
            name for name, value in entries.items() if isinstance(name, str) and isinstance(value, (StoredTensor, StoredArray))
        )
        if not tensors:
            continue
        if len(longest := max(tensors, key=len)) > _MAX_NAME:
            raise InputRefused(
                f"{printable(key, 60) or _ITSELF} has a tensor {printable(longest, 120)}, whose name has {len(longest)} characters; "
                f"expected at most {_MAX_NAME}"
            )
        family = list(_of_family(key, entries, tensors)) if len(tensors) <= MAX_TENSORS else []
        plain = WeightSet(key, entries, {name: name for name in tensors}, {})
        sets += family or ([plain] if sum("." in name for name in tensors) > 1 else [])
        others.append(plain)
    return sets or others


def choose(sets: Sequence[WeightSet], wanted: str | None) -> tuple[WeightSet, str]:
    """The set to take, and why: the one with the key ``wanted``, or the only one of the family, or the one that its
    dialect prefers, or the file's ``state_dict``.

    Raises InputRefused for a key that the file does not have, and where several sets fit equally.
    """
    if wanted is not None:
        asked = [one for one in sets if one.key == wanted or (not one.key and wanted == _ITSELF)]
        if not asked:
            raise InputRefused(f"has no weights called {printable(wanted, 60)!r}; expected one of {_listed(sets)}")
        if len(asked) > 1:
            raise InputRefused(
                f"has {len(asked)} sets of weights called {printable(wanted, 60)!r}; expected one: save the one that is meant alone"
            )
        return asked[0], "as --weights asks"
    fitting = [one for one in sets if one.dialect]
    if not fitting:
        other = next((one for key in ("state_dict", "model") for one in sets if one.key == key), sets[0])
        return other, "no weights of the family are there"
    if len(fitting) == 1:
        return fitting[0], "the only weights in the file" if len(sets) == 1 else "the only weights of a network of the family"
    preferred = [one.key for one in fitting if one.dialect and one.dialect.preferred == one.key != "state_dict"]
    wanted_first = [(key, "as its authors' converter does") for key in preferred]
    for key, why in (*wanted_first, ("", "the file is a state dict"), ("state_dict", "the file's state_dict")):
        if len(usual := [one for one in fitting if one.key == key]) == 1:
            return usual[0], why
    raise InputRefused(f"holds {len(fitting)} sets of weights that fit equally: {_listed(fitting)}; choose one with --weights KEY")


def tensors_of(chosen: WeightSet) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """The tensors of a set and their masks (None for most) by the original's names, and what was left out.

    Raises InputRefused for a set that holds anything but tensors and plain companions, or one name twice.
    """
    entries = chosen.entries
    if len(entries) > MAX_TENSORS:
        raise InputRefused(f"holds {len(entries)} entries; expected a state dict of at most {MAX_TENSORS} tensors")
    if chosen.twice:
        one, other = (printable(name, 100) for name in chosen.twice)
        raise InputRefused(f"{chosen.place} has {one} and {other}, which are one tensor once wrappers are removed; expected one state dict")
    plain, seen = [], set[int]()
    for key, value in entries.items():
        if isinstance(value, (StoredTensor, StoredArray)) and isinstance(key, str):
            continue
        if not isinstance(key, str) or "." in key or inert_in(value, seen) is not None:
            what = f"entry {printable(key, 120)!r}" if isinstance(key, str) else f"an entry whose key is {kind(key)}"
            raise InputRefused(f"{what} holds {kind(value)}; expected a state dict, which has only tensors by name")
        plain.append(key)
    named: dict[str, tuple[Any, Any]] = {}
    renamed = chosen.dialect.renamed if chosen.dialect else str
    for name, original in chosen.names.items():
        ours = renamed(name)
        if ours in named:
            raise InputRefused(f"two of its tensors are {printable(ours, 120)} in the reference's names; expected one state dict")
        named[ours] = (entries[original], entries[chosen.masks[name]] if name in chosen.masks else None)
    return named, (*chosen.companions, *plain)


def unwrapped(name: str) -> str:
    """A name without the words of what wraps a network.

    >>> unwrapped("module._orig_mod.features._checkpoint_wrapped_module.init_conv.weight")
    'features.init_conv.weight'
    """
    words = name.split(".")
    return name if WRAPPERS.isdisjoint(words) else ".".join(word for word in words if word not in WRAPPERS)


def kind(value: object) -> str:
    """A noun for a value, for messages."""
    if (inert := inert_in(value)) is not None:
        inside = "" if isinstance(value, (Inert, Name)) else f", which holds {inert}"
        return f"{_KINDS[type(value).__name__]}{inside}" if inside else f"the object {inert}"
    name = value.type if isinstance(value, OddKey) else type(value).__name__
    return _KINDS.get(name, "an object")


def inert_in(value: object, seen: set[int] | None = None) -> str | None:
    """The name of an inert object in a value; None for tensors and plain containers of plain values.

    ``seen`` has the containers (their ``id``) that were looked at before, each of which can stand in a pickle very often.
    """
    seen = set() if seen is None else seen
    rest = deque([value])
    while rest:
        one = rest.popleft()
        if isinstance(one, (Inert, Name)):
            return printable(one.name if isinstance(one, Inert) else one, 120)
        if isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            rest.extend(one.values() if isinstance(one, dict) else one)
    return None


def _mappings(loaded: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every dictionary in an object, the outer ones first, with its key. One that is shared is returned once."""
    level: list[tuple[str, Any]] = [("", loaded)]
    seen: set[int] = set()
    for _ in range(_DEPTH):
        below: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, Inert):
                value = value.entries
            if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict):
                yield key, value
            inner = value.items() if isinstance(value, dict) else enumerate(value[:_MOST_ENTRIES])
            below += [
                (f"{key}.{name}" if key else f"{name}" or '""', one)
                for name, one in inner
                if isinstance(one, (dict, list, tuple, Inert))
                and (isinstance(name, int) or (isinstance(name, str) and len(name) <= _MAX_KEY))
            ]
        level = below


def _of_family(key: str, entries: Mapping[Any, Any], tensors: Mapping[str, object]) -> Iterator[WeightSet]:
    """The networks of the family in a mapping: usually one, several where a network holds others."""
    masks = {name[:-5]: f"{name[:-5]}_mask" for name in tensors if name.endswith("_orig") and f"{name[:-5]}_mask" in tensors}
    named: dict[str, str] = {}
    twice: dict[str, tuple[str, str]] = {}
    for name in tensors:
        base = name[:-5] if name.endswith("_orig") and name[:-5] in masks else name
        if name.endswith("_mask") and name[:-5] in masks:
            continue
        if named.setdefault(ours := unwrapped(base), name) != name:
            twice[ours] = (name, named[ours])
    anchors = [
        (dialect, name.removesuffix(dialect.anchor))
        for dialect in DIALECTS
        for name in named
        if name == dialect.anchor or name.endswith(f".{dialect.anchor}")
    ]
    if not anchors:
        return
    if len(anchors) > _MOST_NETWORKS * 2:  # two dialects share an anchor
        raise InputRefused(
            f"{printable(key, 60) or _ITSELF} has more than {_MOST_NETWORKS} networks; expected one: save the one that is meant alone"
        )
    ordered = sorted(named)

    def under(prefix: str) -> list[str]:
        if not prefix:
            return ordered
        return ordered[bisect_left(ordered, prefix) : bisect_left(ordered, f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}")]

    matches: dict[str, Dialect] = {}
    for dialect, prefix in anchors:
        if prefix not in matches and dialect.recognises(name.removeprefix(prefix) for name in under(prefix)):
            matches[prefix] = dialect
    of: dict[str, str] = {}
    for prefix in sorted(matches, key=len):  # a network inside another is not a part of it
        of.update(dict.fromkeys(under(prefix), prefix))
    for prefix, dialect in sorted(matches.items()):
        own = {name.removeprefix(prefix): original for name, original in named.items() if of.get(name) == prefix}
        left = sorted(named[name] for name in named if of.get(name) != prefix or _is_companion(name.removeprefix(prefix)))
        place = ".".join(filter(None, (key, prefix.rstrip(".") if len(matches) > 1 else "")))
        yield WeightSet(
            place, entries, {name: original for name, original in own.items() if not _is_companion(name)},
            {ours.removeprefix(prefix): mask for base, mask in masks.items() if of.get(ours := unwrapped(base)) == prefix},
            tuple(left), dialect, next((pair for ours, pair in twice.items() if of.get(ours) == prefix), ()),
        )  # fmt: skip


def _is_companion(name: str) -> bool:
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    return first in _COMPANIONS or last in _COUNTERS


def _listed(sets: Sequence[WeightSet]) -> str:
    shown = ", ".join(printable(one.words(), 120) for one in sets[:8]) or "none: the file has no weights"
    return shown + (f" and {len(sets) - 8} more" if len(sets) > 8 else "")


def _size(value: Any) -> int:
    if isinstance(value, StoredTensor) and value.storage is not None:
        return min(math.prod(value.shape) * (TYPES[value.dtype].itemsize if value.dtype in TYPES else 0), sys.maxsize)
    return value.stored_bytes if isinstance(value, StoredArray) else 0


def companions_in_words(names: Sequence[str]) -> str:
    """What was left out, in few words: names that end alike are counted."""
    ends = Counter(name.rpartition(".")[2] for name in names)
    words = [name for name in names if ends[name.rpartition(".")[2]] == 1]
    words += [f"{count} tensors called {end}" for end, count in ends.items() if count > 1]
    return ", ".join(printable(word, 100) for word in words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
