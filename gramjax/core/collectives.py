"""What devices send one another in a compiled program, read from its text: bytes by kind of collective.

A count to compare and to hold against a bound, not to quote: it takes what each collective hands a device (a
reduce-scatter: what it takes from one), times how often the loops around it run. What comes from other TPU slices
does so through the hosts, and is a kind of its own: an all-reduce over slices is one inside each, of which every chip
then exchanges its part.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence

BETWEEN_SLICES = "between-slices"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", BETWEEN_SLICES)

WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}  # fmt: skip
"""Bytes of a value; the 8-bit floats have names that begin with f8."""

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def bytes_by_kind(text: str) -> dict[str, int]:
    """Bytes per device and run of a compiled program (`compiled.as_text()`), by kind; kinds that do not occur are 0."""
    computations, entry = _computations(text)
    # The compiler may spread one collective over several fusions, also over those of a loop that it is to overlap with.
    once: dict[tuple[str, str], float] = {}
    for kind, size, times, channel in _walk(computations, entry, 1):
        once[kind, channel] = min(size * times, once.get((kind, channel), float("inf")))
    found = collections.Counter({kind: 0 for kind in KINDS})
    for (kind, _), size in once.items():
        found[kind] += int(size)
    return dict(found)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and the name of the first to run."""
    out: dict[str, list[str]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            out[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current and line.startswith(" "):
            out[current].append(line)
    return out, entry


def _walk(
    computations: Mapping[str, Sequence[str]], name: str, times: int
) -> Iterator[tuple[str, float, int, str]]:
    """(kind, bytes, how often, channel) of every collective that a computation runs."""
    for line in computations.get(name, ()):
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        own, rest = found.groups()
        shape, operation, operands = _parts(rest)
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            size = _moved(kind, operation, shape, operands, computations[name])
            yield kind, size, times, _known_by(rest) or f"{name}/{own}"
            continue
        if operation == "recv" and "xla_megascale_runtime" in rest:
            yield BETWEEN_SLICES, max(_size(*found) for found in _ARRAY.findall(shape)), times, f"{name}/{own}"
            continue
        if operation == "while":
            body, condition = (re.search(rf"{part}=%?([\w.\-]+)", rest) for part in ("body", "condition"))
            if body and condition:
                known, parts = _TRIPS.search(rest), (computations.get(part[1], ()) for part in (condition, body))
                trips = int(known[1]) if known else _trips(*parts)
                yield from _walk(computations, body[1], times * trips)
            continue
        for called in _CALLED.findall(rest):
            for inner in called.replace("%", "").split(", "):
                yield from _walk(computations, inner, times)


def _known_by(rest: str) -> str:
    """What all instructions of one collective have in common; "" where nothing says that."""
    if chain := re.search(r'chain_id="(\d+)"', rest):  # it was cut up, to run beside what it does not wait for
        return f"chain {chain[1]}"
    # Those that `shard_map` writes down all have one channel: it says nothing of which is which.
    channel = None if "shard_map" in rest else re.search(r"channel_id=(\d+)", rest)
    return channel[1] if channel else ""


def _parts(rest: str) -> tuple[str, str, str]:
    """Shape, operation and what follows its opening bracket, of an instruction without its name."""
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            operation, _, operands = rest[i + 1 :].partition("(")
            return rest[:i], operation, operands
    return rest, "", ""


def _moved(kind: str, operation: str, shape: str, operands: str, lines: Sequence[str]) -> float:
    """Bytes that a collective hands to a device, or takes from it where that is more."""
    arrays = [_size(*found) for found in _ARRAY.findall(shape)]
    if operation.endswith("-start"):  # operands and results in one tuple
        return max(arrays, default=0)
    if kind != "reduce-scatter":
        return sum(arrays)
    names = re.findall(r"%?([\w.\-]+)", operands.partition(")")[0])
    given = [line for line in lines if any(re.match(rf"\s+(?:ROOT )?%?{re.escape(n)} = ", line) for n in names)]
    sizes = [_size(*found) for line in given for found in _ARRAY.findall(_parts(line.split(" = ", 1)[1])[0])]
    return max(sum(sizes), sum(arrays))


def _size(kind: str, dimensions: str) -> float:
    count = 1
    for size in filter(None, dimensions.split(",")):
        count *= int(size)
    return count * (1 if kind.startswith("f8") else WIDTHS.get(kind, 0))


def _trips(condition: Sequence[str], body: Sequence[str]) -> int:
    """How often a loop runs whose condition compares a counter that began at 0 with a constant; 1 where it does not.

    The compiler unrolls loops: their counters then grow by more than 1.
    """
    limit, where = 0, ""
    for names in (_operands(line, "compare") for line in condition if "direction=LT" in line):
        for name in names:
            rest = _definition(condition, name)
            value, index = re.search(r"constant\((\d+)\)", rest), re.search(r"index=(\d+)", rest)
            limit, where = int(value[1]) if value else limit, index[1] if index else where
    if not limit:
        return 1
    next_values = [name for line in body if "ROOT" in line for name in _operands(line, "tuple")]
    step = 1
    if where and int(where) < len(next_values):
        added = _operands(f" = {_definition(body, next_values[int(where)])}", "add")
        constants = (re.search(r"constant\((\d+)\)", _definition(body, name)) for name in added)
        step = next((int(value[1]) for value in constants if value), 1)
    return -(-limit // max(step, 1))


def _operands(line: str, operation: str) -> list[str]:
    """The names in the brackets of an instruction of this operation."""
    _, found, rest = line.partition(f" {operation}(")
    return re.findall(r"%([\w.\-]+)", rest.partition(")")[0]) if found else []


def _definition(lines: Sequence[str], name: str) -> str:
    """What an instruction of a computation says after its name; "" when it is not there."""
    found = (_INSTRUCTION.match(line) for line in lines)
    return next((parts[2] for parts in found if parts and parts[1] == name), "")
