"""Counts the kernels, bytes and collectives of a compiled program's loop, from its HLO text.

The counts are exact and repeatable, and need no device. They are for the largest body of a `while`:
a training step, or one batch or one chunk of samples in an evaluation.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")

# Instructions that only name memory, or that wait for another one to finish.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}
FREE |= {"after-all", "opt-barrier", "copy-start", "copy-done", "slice-start", "slice-done"}
FREE |= {"async-start", "async-update", "async-done"} | {f"{name}-done" for name in COLLECTIVES}

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
"""Of an element; 4 for other types."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[sufbc]f?\d+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    """The shape of its result as printed: an array, or a tuple of arrays."""

    operation: str
    rest: str
    """Operands, then attributes."""

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def called(self, attribute: str) -> str:
        """The computation named by an attribute such as `body` or `calls`; "" if there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else ""


class Loop(NamedTuple):
    """The work of one pass through a program's loop."""

    kernels: dict[str, int]
    """By kind: products, reductions, other fusions, other calls, other instructions."""

    bytes_moved: int
    """Bytes that these kernels and collectives read and write."""

    collectives: dict[str, int]
    """The number of each operation."""

    collective_bytes: int
    """Bytes of their results, on one device."""


def array_bytes(shape: str) -> int:
    """The bytes of all arrays in a shape.

    Example:
      >>> array_bytes("(f32[2,3]{1,0:T(8,128)}, pred[4]{0}, u32[])"), array_bytes("c64[10]")
      (32, 80)
    """
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(n) for n in dimensions.split(",") if n)
        for dtype, dimensions in _ARRAY.findall(shape)
    )


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of a program's computations, by computation."""
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found.setdefault(start.group(1), [])
        elif instruction := _INSTRUCTION.match(line):
            current.append(Instruction(*instruction.groups()))
    return found


def loop(text: str, fusions_alone: bool = False) -> Loop:
    """Counts the work of one pass through the largest loop of a compiled program.

    Args:
      text: the compiled program's text.
      fusions_alone: count only fusions and calls. On a TPU the other instructions are scalar
        arithmetic of random keys, which runs beside the kernels.

    Raises:
      ValueError: the program has no loop.
    """
    program = computations(text)
    bodies = [
        instruction.called("body")
        for instructions in program.values()
        for instruction in instructions
        if instruction.operation == "while"
    ]
    if not bodies:
        raise ValueError("this program has no loop; give one with a `while`, such as an epoch's")
    return max(
        (_count(program, body, fusions_alone) for body in bodies),
        key=lambda found: sum(found.kernels.values()),
    )


def _count(program: dict[str, list[Instruction]], body: str, fusions_alone: bool) -> Loop:
    kernels = dict.fromkeys(("products", "reductions", "fusions", "calls", "others"), 0)
    collectives: dict[str, int] = {}
    moved = collective_bytes = 0
    for instruction, shapes in _flattened(program, body):
        operation = instruction.operation.removesuffix("-start")
        if operation in COLLECTIVES:
            collectives[operation] = collectives.get(operation, 0) + 1
            collective_bytes += array_bytes(instruction.shape)
        elif instruction.operation in FREE:
            continue
        else:
            kind = _kind(program, instruction)
            if kind == "others" and fusions_alone:
                continue
            kernels[kind] += 1
        moved += _bytes_moved(program, instruction, shapes)
    return Loop(kernels, moved, collectives, collective_bytes)


def _flattened(
    program: dict[str, list[Instruction]], name: str
) -> Iterator[tuple[Instruction, dict[str, str]]]:
    """A computation's instructions and those of its calls, each with the shapes in its scope."""
    shapes = {instruction.name: instruction.shape for instruction in program[name]}
    for instruction in program[name]:
        if instruction.operation == "call":
            yield from _flattened(program, instruction.called("to_apply"))
        else:
            yield instruction, shapes


def _kind(program: dict[str, list[Instruction]], instruction: Instruction) -> str:
    if instruction.operation == "custom-call":
        return "products" if "matmul" in instruction.rest or "gemm" in instruction.rest else "calls"
    if instruction.operation != "fusion":
        return "others"
    operations = set(_operations(program, instruction.called("calls")))
    if operations & {"dot", "convolution"}:
        return "products"
    return "reductions" if "reduce" in operations else "fusions"


def _operations(program: dict[str, list[Instruction]], name: str) -> Iterator[str]:
    """The operations of a fused computation, including fusions within it."""
    for instruction in program[name]:
        yield instruction.operation
        if instruction.operation == "fusion":
            yield from _operations(program, instruction.called("calls"))


def _bytes_moved(
    program: dict[str, list[Instruction]], instruction: Instruction, shapes: dict[str, str]
) -> int:
    """Bytes of the result and the operands; an operand that is only sliced counts by its slices."""
    read = [array_bytes(shapes.get(name, "")) for name in instruction.operands]
    if instruction.operation == "fusion":
        fused = program[instruction.called("calls")]
        for parameter in (i for i in fused if i.operation == "parameter"):
            position = int(parameter.rest.split(")")[0])
            users = [i for i in fused if parameter.name in i.operands[:1]]
            others = [i for i in fused if parameter.name in i.operands[1:]]
            slicing = all("slice" in i.operation or i.operation == "gather" for i in users)
            if users and slicing and not others and position < len(read):
                read[position] = sum(array_bytes(i.shape) for i in users)
    written = instruction.shape
    if instruction.operation == "custom-call":
        written = re.sub(r"\bs8\[\d+\]", "", written)  # a library's scratch memory
    return sum(read) + array_bytes(written)
