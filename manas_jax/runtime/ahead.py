"""Programs compiled for other devices than those of this machine, and what they tell."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from manas_jax.errors import UserError, one_line
from manas_jax.runtime.compilation import call_key, output_shapes

Collectives = dict[str, dict[str, int]]
"""Kind, such as 'all-reduce' -> 'count' and 'bytes' of the results on one device."""


@dataclasses.dataclass
class Program:
    """A compiled program; all figures are of one device.

    Attributes:
      name: of the function.
      calls: per step; 0 for a program of fewer steps than another one, whose figures count.
      seconds: wall time of tracing, lowering and compiling.
      cpu_seconds: processor time of the same.
      argument_bytes: memory of the arguments.
      output_bytes: memory of the results that does not reuse that of arguments.
      temporary_bytes: memory needed besides arguments and results.
      code_bytes: memory of the program itself.
      flops: operations of a call as the compiler counts them; of its optimised form.
      cycles: estimated by the compiler for the operations of a call, one after the other, without
        collectives; 0 where it estimates none.
      optimal_seconds: the compiler's lower bound from peak and memory bandwidth; 0 where it has
        none.
      instructions: of the optimised program, without those inside of fusions.
      collectives: of a call.
      cycles_by_kind: the cycles of 'convolution' (also matrix products), 'copy' (also transposes,
        which change the layout alone) and 'other' operations.
      cycles_by_module: the same by Flax module: the child of the network, or the class of a module
        that is applied by itself; '' for operations of none, such as the loss and updates.
    """

    name: str
    calls: int
    seconds: float
    cpu_seconds: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float
    cycles: int
    optimal_seconds: float
    instructions: int
    collectives: Collectives
    cycles_by_kind: dict[str, int]
    cycles_by_module: dict[str, int]

    @property
    def data_bytes(self) -> int:
        """Memory in use while it runs, besides its code."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes

    @property
    def costs(self) -> Costs:
        """Those of a call."""
        counters = map(collections.Counter, (self.cycles_by_kind, self.cycles_by_module))
        return Costs(self.instructions, self.collectives, *counters)


class OutOfMemory(UserError):
    """A program that does not fit into the memory of a device.

    Args:
      program: its name.
      needed: bytes.
      available: bytes.
    """

    def __init__(self, program: str, needed: int, available: int):
        super().__init__(
            f"{program} needs {gib(needed)} of a chip that has {gib(available)}: "
            f"{gib(needed - available)} too much"
        )


class AheadCompiler:
    """Compiles the programs of a step, one after the other; called as `ParallelCompiler` is."""

    def __init__(self, sharding: jax.sharding.Sharding | None = None):
        """Args:
        sharding: of the shapes that `__call__` returns; None for unspecified."""
        self._sharding = sharding
        self._compiled: dict[Any, tuple[Program, Any]] = {}

    @property
    def programs(self) -> list[Program]:
        """Those compiled so far."""
        return [program for program, _ in self._compiled.values()]

    def __call__(self, function: Any, *args: Any, calls: int = 1) -> Any:
        """Compiles for arguments like these; returns the shapes of the outputs.

        Args:
          function: made by `jax.jit`.
          *args: `jax.ShapeDtypeStruct`s with shardings, or static arguments.
          calls: how often a step calls it with such arguments.

        Raises:
          OutOfMemory: it does not fit into the memory of a device.
          UserError: the compiler refuses it.
        """
        key = call_key(function, args)
        if key in self._compiled:
            self._compiled[key][0].calls += calls
        else:
            start = time.monotonic(), time.process_time()
            lowered = function.lower(*args)
            name = getattr(function, "__name__", "program").strip("_")
            compiled = _compile(lowered, name)
            seconds = time.monotonic() - start[0], time.process_time() - start[1]
            self._compiled[key] = (
                _describe(compiled, name, calls, *seconds),
                output_shapes(lowered, self._sharding),
            )
        return self._compiled[key][1]


def _compile(lowered: jax.stages.Lowered, name: str) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            sizes = re.findall(r"([\d.]+)([KMGT])\b", str(error))
            if len(sizes) >= 2:
                raise OutOfMemory(name, *(_size(*size) for size in sizes[:2])) from None
        raise UserError(f"{name}: the compiler refuses it ({one_line(error)})") from None


def _size(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))


def _describe(
    compiled: jax.stages.Compiled, name: str, calls: int, seconds: float, cpu_seconds: float
) -> Program:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = entry_costs(compiled.as_text())
    return Program(
        name,
        calls,
        seconds,
        cpu_seconds,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0),
        cycles=found.cycles,
        optimal_seconds=cost.get("optimal_seconds", 0.0),
        instructions=found.instructions,
        collectives=found.collectives,
        cycles_by_kind=dict(found.kinds),
        cycles_by_module=dict(found.modules),
    )


@dataclasses.dataclass
class Costs:
    """What a computation does when it runs once.

    Attributes:
      instructions: their number.
      collectives: by kind.
      kinds: cycles by kind of operation, see `Program`.
      modules: cycles by Flax module.
    """

    instructions: int = 0
    collectives: Collectives = dataclasses.field(default_factory=dict)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    modules: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def cycles(self) -> int:
        """Estimated, of all kinds."""
        return self.kinds.total()

    def add(self, other: Costs, times: int = 1) -> None:
        """Adds another computation that runs `times` times within this one."""
        self.instructions += times * other.instructions
        for own, found in ((self.kinds, other.kinds), (self.modules, other.modules)):
            own.update({name: times * cycles for name, cycles in found.items()})
        for kind, found in other.collectives.items():
            own = self.collectives.setdefault(kind, {"count": 0, "bytes": 0})
            for key, value in found.items():
                own[key] += times * value


_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_KIND = re.compile(rf"({_COLLECTIVES})(-start)?$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"\b(?:body|calls|to_apply|branch_computations)=\{?([^}\s]*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|c\d+)\[([\d,]*)\]")
_MODULE = re.compile(r'op_name="[^"]*?[(/]([A-Z]\w*)\)*/(\w+)')
_COPIES = ("copy", "copy-start", "transpose")
_RUNS_OTHERS = ("while", "call", "conditional", "async-start")


def entry_costs(text: str) -> Costs:
    """Costs of the optimised program with this text (HLO).

    Loops count as often as the compiler knows that they run, or once. An all-reduce of several
    arrays, as which the compiler merges several of one, counts once.
    """
    computations: dict[str, list[str]] = collections.defaultdict(list)
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            entry = name if found[1] else entry
        elif name:
            computations[name].append(line)
    return _costs(computations, entry)


def _costs(computations: Mapping[str, list[str]], name: str) -> Costs:
    total = Costs()
    for line in computations[name]:
        if not (found := _INSTRUCTION.match(line)):
            continue
        result, operation = found.groups()
        cycles = sum(map(int, _CYCLES.findall(line)))
        own = Costs(1)
        own.kinds[_kind(operation, line)] = own.modules[_module(line)] = cycles
        if kind := _KIND.fullmatch(operation):
            arrays = _ARRAY.findall(result)
            if kind[2] and kind[1] != "all-reduce":  # also the operands, and perhaps contexts
                arrays = [array for array in arrays if array != ("u32", "")]
                arrays = arrays[len(arrays) // 2 :]
            own.collectives[kind[1]] = {"count": 1, "bytes": sum(_bytes(*a) for a in arrays)}
        total.add(own)
        if operation in _RUNS_OTHERS:
            trips = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                for other in called.split(","):
                    times = int(trips[1]) if trips else 1
                    total.add(_costs(computations, other.strip("%")), times)
    return total


def _kind(operation: str, line: str) -> str:
    # The TPU's compiler chooses an algorithm for what its matrix units compute, in fusions as well.
    if operation in ("convolution", "dot") or "convolution_algorithm_config" in line:
        return "convolution"
    return "copy" if operation in _COPIES else "other"


def _module(line: str) -> str:
    if not (found := _MODULE.search(line)):
        return ""
    outer, child = found.groups()
    return child if outer == "Network" else outer


def _bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return bits // 8 * math.prod(int(n) for n in shape.split(",") if n)


def gib(size: float) -> str:
    """Bytes as text."""
    return f"{size / 2**30:.2f} GiB"
