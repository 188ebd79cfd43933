"""Reads a pickle without running anything that the pickle names.

A pickle is a program for a stack machine. Python's own machine imports and calls what it is given
to; this one knows only plain values, the containers of Python, and a short table of functions that
rebuild tensors (all ours). Every other class becomes an `Inert` object that keeps its state and
does nothing; every other call is refused. Instructions: the docstrings of Python's `pickletools`.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from headstart.checkpoint.documents import brief
from headstart.errors import FileFormatError

MAX_OPERATIONS = 2_000_000  # a checkpoint of 10,000 tensors has half a million
MAX_COPIED = 20_000_000  # values of containers that calls copy
_MARK = object()
_FLAT = (str, bytes, int, float, bool, type(None))


def as_key(value: Any) -> Any:
    """A key of a dict or member of a set, once it is certain that hashing it is harmless.

    Hashing a tuple that is nested a hundred thousand deep overflows the stack of the interpreter.
    """
    parts = value if type(value) is tuple else (value,)
    if len(parts) > 100 or not all(type(part) in _FLAT or isinstance(part, Name) for part in parts):
        raise ValueError(f"{brief(value)} as a key")
    return value


# Opcodes whose argument is the value itself, as `pickletools` decodes it.
_CONTAINERS = (list, tuple, dict, set, frozenset)
VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip


class Name:
    """A function or class that a pickle names: only the name, nothing is imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """An object of a class that is not loaded. Keeps the state that the pickle gives it.

    Attributes:
        name: Module and class.
        state: What its `__dict__` would be, or whatever else the pickle hands it.
        items: Entries, when the class is a kind of dict.
        values: Entries, when it is a kind of list or set.
    """

    __slots__ = ("items", "name", "state", "values")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.values: list[Any] = []


Call = Callable[..., Any]


class Machine:
    """The stack machine.

    Args:
        where: The file, for messages.
        calls: What a call of a name gives. Nothing else can be called.
        persistent: What a persistent id (torch's reference to numbers outside the pickle) gives;
            None refuses them.
    """

    def __init__(
        self, where: str, calls: Mapping[str, Call], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.where = where
        self.calls = calls
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def load(self, file: Any) -> Any:
        """The value of the pickle that begins at the file's position, which is left after it."""
        self.stack, self.memo, self.copied = [], {}, 0
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if opcode.name == "STOP":
                    return self.stack.pop()
                if count > MAX_OPERATIONS:
                    raise FileFormatError(
                        f"{self.where} is a pickle of more than {MAX_OPERATIONS:,} steps"
                    )
                self._step(opcode.name, argument)
        except FileFormatError:
            raise
        # What a damaged pickle runs into: too short a stack, an unhashable key, a text that does
        # not decode.
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            MemoryError,
            RecursionError,
        ) as error:
            raise FileFormatError(
                f"{self.where} is a damaged or cut off pickle: {error}"
            ) from error
        raise FileFormatError(f"{self.where} is a pickle without an end")

    def _step(self, op: str, argument: Any) -> None:
        if op in VALUES:
            self.stack.append(argument)
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif op in CONSTANTS:
            self.stack.append(CONSTANTS[op]())
        elif op == "GLOBAL":
            self.stack.append(Name(argument.replace(" ", ".", 1)))
        elif op not in ("PROTO", "FRAME"):
            step = getattr(self, f"_{op.lower()}", None)
            if step is None:
                raise FileFormatError(
                    f"{self.where} uses the pickle instruction {op}, which no checkpoint needs"
                )
            step()

    def _take(self) -> list[Any]:
        """Everything above the last mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                taken = self.stack[i + 1 :]
                del self.stack[i:]
                return taken
        raise ValueError("no mark")

    def _pairs(self) -> list[tuple[Any, Any]]:
        flat = self._take()
        return [(as_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True)]

    def _mark(self) -> None:
        self.stack.append(_MARK)

    def _pop(self) -> None:
        self.stack.pop()

    def _pop_mark(self) -> None:
        self._take()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _tuple1(self) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _tuple(self) -> None:
        self.stack.append(tuple(self._take()))

    def _list(self) -> None:
        self.stack.append(self._take())

    def _dict(self) -> None:
        self.stack.append(dict(self._pairs()))

    def _frozenset(self) -> None:
        self.stack.append(frozenset(map(as_key, self._take())))

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._take())

    def _additems(self) -> None:
        self._extend(self._take())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.values.extend(values)
        elif type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target.update(map(as_key, values))
        else:
            raise ValueError(f"values for a {type(target).__name__}")

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([(as_key(key), value)])

    def _setitems(self) -> None:
        self._set(self._pairs())

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert) and type(target) is not dict:
            raise ValueError(f"entries for a {type(target).__name__}")
        entries = target.items if isinstance(target, Inert) else target
        entries.update(pairs)

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a function whose name is not a text")
        self.stack.append(Name(f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Name) else type(function).__name__
        call = self.calls.get(name) if isinstance(function, Name) else None
        if call is None or type(arguments) is not tuple:
            raise FileFormatError(
                f"{self.where} asks to call {name}, which loading tensors never needs; nothing was"
                " run. If you trust the file, save its tensors as safetensors where it was made"
            )
        self.copied += sum(len(each) for each in arguments if isinstance(each, _CONTAINERS))
        if self.copied > MAX_COPIED:
            raise FileFormatError(f"{self.where} copies more than {MAX_COPIED:,} values")
        return call(*arguments)

    def _newobj(self) -> None:
        self.stack.pop()
        self._new(self.stack.pop())

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._newobj()

    def _new(self, kind: Any) -> None:
        if not isinstance(kind, Name):
            raise ValueError(f"an object of {type(kind).__name__}")
        self.stack.append(Inert(kind.name))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if hasattr(target, "build"):
            target.build(state)
        elif isinstance(target, Inert):
            target.state = state
        elif (
            type(target) is not dict
        ):  # An OrderedDict's attributes (such as `_metadata`) are not tensors.
            raise FileFormatError(
                f"{self.where} sets the state of a {type(target).__name__}, which no checkpoint"
                " needs"
            )

    def _binpersid(self) -> None:
        if self.persistent is None:
            raise FileFormatError(
                f"{self.where} refers to data outside the pickle, which this kind of file does not"
                " have"
            )
        self.stack.append(self.persistent(self.stack.pop()))
