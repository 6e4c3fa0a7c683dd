"""What a frame is calling or awaiting at this moment: found in its bytecode. Pure.

A function in C has no frame, so `time.sleep` is on no stack. But the bytecode says which name is called where
a frame stands, and the name leads to the function, as long as it is a global, a built-in, an attribute of a
module, or a local that an `import` in the function has set.

Rules:

1. No local variable and no attribute of an object of the application is read. Names are looked up in
   dictionaries of modules only, so no code of the application runs.
2. One pass over a function's instructions, once for each code object. The stack is followed from its top,
   with names where they are known. Where two ways meet that differ, nothing is known.
3. What is not found is None.
"""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, TypeAlias

#: Functions with more bytecode are not looked into: a pass takes a microsecond for each instruction.
LARGEST_BYTECODE_BYTES: Final = 32_768


class Name(NamedTuple):
    """A dotted name in the source: `time.sleep`."""

    root: str
    """A global or a built-in; empty where the object is not known, and only its attribute is."""
    attributes: tuple[str, ...] = ()
    imported: bool = False
    """Whether the root is a module that an `import` in the function names."""

    def attribute(self, name: str) -> Name:
        return Name(self.root, (*self.attributes, name), self.imported)


class Result(NamedTuple):
    """What a call of this name has returned."""

    of: Name


Symbol: TypeAlias = "Name | Result | None"
Symbols: TypeAlias = "list[Symbol]"
"""The stack of a frame as far as it is known, the top last. What is below is not known."""


class Calls(NamedTuple):
    """Where a function calls and awaits, by the offset of the instruction."""

    called: Mapping[int, Name]
    awaited: Mapping[int, Name]
    """What returned the object that is awaited."""


NOTHING: Final = Calls({}, {})


def calls(code: CodeType) -> Calls:
    """Return where this function calls and awaits names that can be looked up."""
    if len(code.co_code) > LARGEST_BYTECODE_BYTES:
        return NOTHING
    return _Pass(code.co_names).over(code)


# --- Following the stack --------------------------------------------------------------------

_OLD: Final = sys.version_info < (3, 11)
#: They take from the stack and put nothing back.
_TAKES: Final = (
    "STORE_", "DELETE_", "POP_", "LIST_", "SET_ADD", "SET_UPDATE", "MAP_ADD", "DICT_", "JUMP", "SETUP_",
    "END_", "NOP", "RESUME", "CACHE", "EXTENDED_ARG", "KW_NAMES", "MAKE_CELL", "COPY_FREE", "GET_AWAITABLE",
    "NOT_TAKEN", "GEN_START", "RERAISE", "RAISE", "RETURN",
)  # fmt: skip
#: They replace the top before they put more on it.
_REPLACES: Final = ("UNPACK_", "BEFORE_")
#: The next instruction is not reached from here.
_ENDS: Final = (
    "RETURN_VALUE", "RETURN_CONST", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD",
    "INTERPRETER_EXIT",
)  # fmt: skip
#: The lowest bit of their number says that they put one more object on the stack.
_FLAGGED: Final = frozenset(
    name for name, since in (("LOAD_GLOBAL", (3, 11)), ("LOAD_ATTR", (3, 12))) if sys.version_info >= since
)
_JUMPS: Final = frozenset((*dis.hasjrel, *dis.hasjabs))
#: How many places of the stack a call takes besides its arguments, and where the name can be among these,
#: counted from the first argument on downwards.
_CALLS: Final[Mapping[str, tuple[int, tuple[int, ...]]]] = (
    {"CALL_FUNCTION": (1, (1,)), "CALL_METHOD": (2, (2, 1))}
    if _OLD
    else {"CALL": (2, (2, 1)), "CALL_KW": (2, (2, 1))}
)
_NAMES_ON_TOP: Final = frozenset({"CALL_FUNCTION_KW", "CALL_KW"})


class _Instruction(NamedTuple):
    """What `dis.get_instructions` gives, as far as it is needed here, at a tenth of its time."""

    offset: int
    opcode: int
    opname: str
    arg: int | None
    target: int | None
    """Where a jump further on leads."""


def _instructions(code: CodeType) -> Iterator[_Instruction]:
    bytecode = code.co_code
    size, extended, offset = len(bytecode), 0, 0
    while offset < size:
        at, opcode = offset, bytecode[offset]
        arg = bytecode[offset + 1] | extended
        offset += 2
        if opcode == dis.EXTENDED_ARG:
            extended = arg << 8
            continue
        extended = 0
        while not _OLD and offset < size and not bytecode[offset]:  # CACHE
            offset += 2
        target = None
        if opcode in _JUMPS and "BACKWARD" not in dis.opname[opcode]:
            target = 2 * arg if opcode in dis.hasjabs else offset + 2 * arg
        takes_number = opcode >= dis.HAVE_ARGUMENT
        yield _Instruction(at, opcode, dis.opname[opcode], arg if takes_number else None, target)


class _Pass:
    """One pass over a function's instructions."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._stack: Symbols = []
        self._reached = True
        self._before: dict[int, Symbols] = {}
        """The stacks with which jumps lead to instructions further on."""
        self._imported: dict[int, Name | None] = {}
        """Local variables, by number, that an import sets; None where something else does too."""
        self._called: dict[int, Name] = {}
        self._awaited: dict[int, Name] = {}
        self._last = ""

    def over(self, code: CodeType) -> Calls:
        for instruction in _instructions(code):
            offset = instruction.offset
            others = self._before.pop(offset, None)
            if others is not None:
                self._stack = _common(self._stack, others) if self._reached else others
            elif not self._reached:
                self._stack = []  # a handler of exceptions
            self._reached = True
            if instruction.target is not None and instruction.target > offset:
                self._jump(instruction, instruction.target)
            self._step(instruction)
            self._last = instruction.opname
            if instruction.opname.startswith(_ENDS):
                self._reached = False
        return Calls(self._called, self._awaited)

    def _jump(self, instruction: _Instruction, target: int) -> None:
        stack: Symbols = []
        if not instruction.opname.startswith("SETUP_"):
            stack = list(self._stack)
            _shift(stack, dis.stack_effect(instruction.opcode, instruction.arg, jump=True))
        others = self._before.get(target)
        self._before[target] = stack if others is None else _common(stack, others)

    def _step(self, instruction: _Instruction) -> None:
        name, stack = instruction.opname, self._stack
        if name.startswith("LOAD_"):
            self._load(instruction)
        elif name in _CALLS or name.startswith("CALL_FUNCTION") or name == "PRECALL":
            self._call(instruction)
        elif name == "IMPORT_NAME":
            self._import(instruction)
        elif name == "IMPORT_FROM":
            module = _at(stack, 1)
            named = self._names[instruction.arg or 0]
            stack.append(module.attribute(named) if isinstance(module, Name) else None)
        elif name.startswith("STORE_FAST"):
            self._store(instruction)
        elif name in ("SEND", "YIELD_FROM") or (name == "YIELD_VALUE" and self._last == "SEND"):
            self._await(instruction)
        elif not _moves(stack, name, instruction.arg or 0):
            effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
            if name.startswith(_REPLACES) or (effect <= 0 and not name.startswith(_TAKES)):
                _shift(stack, min(effect, 0))
                _shift(stack, -1)
                effect = max(effect, 0) + 1
            _shift(stack, effect)

    def _load(self, instruction: _Instruction) -> None:
        name, number, stack = instruction.opname, instruction.arg or 0, self._stack
        if name in _FLAGGED:
            flag, number = number & 1, number >> 1
        else:
            flag = name == "LOAD_METHOD"
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            symbol = Name(self._names[number])
            stack.extend([None, symbol] if flag else [symbol])
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            owner, value = stack.pop() if stack else None, self._names[number]
            symbol = owner.attribute(value) if isinstance(owner, Name) else Name("", (value,))
            stack.extend([symbol, None] if flag else [symbol])
        elif name.startswith("LOAD_FAST"):
            stack.extend([self._imported.get(local) for local in _locals_of(name, number)])
        else:
            effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
            if effect <= 0:  # LOAD_SUPER_ATTR and the like
                _shift(stack, effect - 1)
                effect = 1
            _shift(stack, effect)

    def _call(self, instruction: _Instruction) -> None:
        name, number, stack = instruction.opname, instruction.arg or 0, self._stack
        if name == "CALL_FUNCTION_EX":
            takes, places = _CALLS["CALL_FUNCTION" if _OLD else "CALL"]
            arguments = 1 + (number & 1)
        else:
            takes, places = _CALLS.get("CALL" if name == "PRECALL" else name, (1, (1,)))
            arguments = number + (name in _NAMES_ON_TOP)
        symbols = [_at(stack, arguments + place) for place in places]
        symbol = next((symbol for symbol in symbols if isinstance(symbol, Name)), None)
        if symbol is not None:
            self._called[instruction.offset] = symbol
        if name != "PRECALL":
            _shift(stack, -(arguments + takes))
            stack.append(None if symbol is None else Result(symbol))

    def _import(self, instruction: _Instruction) -> None:
        # Without a list of names `import a.b` leaves `a`; with one, or `as`, IMPORT_FROM follows.
        module = self._names[instruction.arg or 0]
        _shift(self._stack, -2)
        self._stack.append(Name(module.partition(".")[0], (), True) if module.isidentifier() else None)

    def _store(self, instruction: _Instruction) -> None:
        name = instruction.opname
        locals_stored = _locals_of(name, instruction.arg or 0)
        if name == "STORE_FAST_LOAD_FAST":
            self._bind(locals_stored[0])
            self._stack.append(self._imported.get(locals_stored[1]))
        else:
            for local in locals_stored:
                self._bind(local)

    def _bind(self, local: int) -> None:
        symbol = self._stack.pop() if self._stack else None
        module = symbol if isinstance(symbol, Name) and symbol.imported else None
        same = local not in self._imported or self._imported[local] == module
        self._imported[local] = module if same else None

    def _await(self, instruction: _Instruction) -> None:
        name, stack, offset = instruction.opname, self._stack, instruction.offset
        awaited = _at(stack, 2)
        # A suspended frame stands at YIELD_VALUE; in Python 3.10 at the instruction before YIELD_FROM, since
        # 3.13 at the one after YIELD_VALUE.
        offsets = [offset - 2, offset] if name == "YIELD_FROM" else [offset, offset + 2]
        if isinstance(awaited, Result):
            self._awaited.update(dict.fromkeys(offsets, awaited.of))
        if name == "YIELD_FROM":
            _shift(stack, -2)
            stack.append(None)


def _locals_of(name: str, number: int) -> tuple[int, ...]:
    """Return the numbers of the local variables of an instruction that loads or stores one or two."""
    return (number >> 4, number & 15) if name.count("FAST") == 2 else (number,)


def _at(stack: Symbols, depth: int) -> Symbol:
    """Return what is there, 1 being the top."""
    return stack[-depth] if depth <= len(stack) else None


def _shift(stack: Symbols, effect: int) -> None:
    """Put so many unknown objects on the stack, or take so many from it."""
    if effect >= 0:
        stack.extend([None] * effect)
    else:
        del stack[max(0, len(stack) + effect) :]


def _common(one: Symbols, other: Symbols) -> Symbols:
    """Return what two stacks have in common, from the top on."""
    size = min(len(one), len(other))
    ends = zip(one[len(one) - size :], other[len(other) - size :], strict=True)
    return [first if first == second else None for first, second in ends]


def _moves(stack: Symbols, name: str, number: int) -> bool:
    """Do an instruction that only moves or copies what is on the stack; return whether it is one."""
    moved = {"DUP_TOP": ("COPY", 1), "ROT_TWO": ("SWAP", 2)}.get(name, (name, number))
    if moved[0] not in ("COPY", "SWAP"):
        return False
    depth = moved[1]
    _pad = depth - len(stack)
    if _pad > 0:
        stack[:0] = [None] * _pad
    if moved[0] == "COPY":
        stack.append(stack[-depth])
    else:
        stack[-1], stack[-depth] = stack[-depth], stack[-1]
    return True


# --- From names to functions ----------------------------------------------------------------

#: They compute, in no time: where a frame stands at such a call, it is at work itself.
_COMPUTING: Final = frozenset(
    {
        "builtins", "math", "cmath", "operator", "itertools", "functools", "collections", "random", "string",
        "sys", "struct", "array", "bisect", "heapq", "datetime", "weakref", "contextvars",
    }
)  # fmt: skip
#: C modules by the name under which programs know them, where that is not the same without an underscore.
_KNOWN_AS: Final = {"posix": "os", "nt": "os"}


def resolved(name: Name, variables: dict[str, Any]) -> Any:
    """Return the object of this name; None: not found. `variables`: the frame's globals."""
    if not name.root:
        return None
    if name.imported:
        value = sys.modules.get(name.root)
    elif dict.__contains__(variables, name.root):
        value = dict.get(variables, name.root)
    else:
        value = builtins.__dict__.get(name.root)
    for attribute in name.attributes:
        if not issubclass(type(value), ModuleType):
            return None
        value = dict.get(object.__getattribute__(value, "__dict__"), attribute)
    return value


def c_function(function: Any) -> str | None:
    """Return what a function in C is called: `time.sleep`, or the package that it is from.

    None: it is none, or one that computes and takes no time.
    """
    if type(function) is not BuiltinFunctionType:
        return None
    module, name = function.__module__, function.__name__
    if not isinstance(module, str):
        return None
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return top if top in sys.modules else None
    top = _KNOWN_AS.get(top, top.lstrip("_"))
    if top in _COMPUTING or (top == "time" and name != "sleep"):
        return None
    return f"{top}.{name}"


def python_function(function: Any) -> CodeType | None:
    """Return the code of a function in Python; None: it is none."""
    return function.__code__ if type(function) is FunctionType else None
