"""Compiles a function in parts, so that a pass over the network that it takes several times is compiled once.

XLA compiles every call of a function anew unless it lies in a loop, and XLA:CPU is slow in loops. Here a
jitted function that holds a convolution is a program of its own, which its calls share; what they need
becomes a program before them, and what needs them one after them. All are compiled side by side. What is
called in a loop or under `shard_map` stays there, and is compiled with the rest.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_FEW_NUMBERS = 2**21  # of results; 680 images of 32 x 32


def compiled(function: Callable, *arguments: Any) -> Callable:
    """Compiles a function for the given arguments: one program, or `Parts` if it has passes."""
    traced = jax.jit(function).trace(*arguments)
    calls = [one for one in map(_called, traced.jaxpr.eqns) if one and _has_convolution(one)]
    return Parts(traced, list(dict.fromkeys(calls))) if len(calls) > 1 else traced.lower().compile()


class Parts:
    """The programs of a function; a class because it owns them."""

    def __init__(self, traced: jax.stages.Traced, passes: list[core.ClosedJaxpr]):
        self._jaxpr, self._tree = traced.jaxpr, jax.tree.structure(traced.out_info)
        stages = list(_stages(traced.jaxpr.jaxpr, passes))
        between = [core.ClosedJaxpr(before, []) for before, _ in stages if before.eqns]
        with concurrent.futures.ThreadPoolExecutor() as pool:  # XLA keeps little more than one core busy
            largest_first = sorted([*passes, *between], key=_size, reverse=True)
            programs = dict(zip(largest_first, pool.map(_compile, largest_first)))
        self._programs = [programs[part] for part in (*passes, *between)]
        shared, others = dict(zip(passes, self._programs)), iter(self._programs[len(passes) :])
        self._calls = []  # (program, what it reads, what it gives), in order
        for before, calls in stages:
            if before.eqns:
                self._calls.append((next(others), before.invars, before.outvars))
            self._calls += [(shared[_called(call)], call.invars, call.outvars) for call in calls]

    def __call__(self, *arguments: Any) -> Any:
        jaxpr = self._jaxpr.jaxpr
        values = dict(zip(jaxpr.constvars + jaxpr.invars, self._jaxpr.consts + jax.tree.leaves(arguments)))

        def read(atoms):
            return [
                jnp.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else values[v] for v in atoms
            ]

        for program, reads, gives in self._calls:
            values.update(zip(gives, program(*read(reads))))
        return jax.tree.unflatten(self._tree, read(jaxpr.outvars))

    def as_text(self) -> str:
        """Of all programs, one after the other."""
        return "\n".join(program.as_text() for program in self._programs)

    def memory_analysis(self) -> Any:
        """That of the program which takes most."""
        return max(
            (program.memory_analysis() for program in self._programs),
            key=lambda one: one.temp_size_in_bytes + one.argument_size_in_bytes,
        )


def _compile(jaxpr):
    # On few numbers XLA need not optimise what lies between the passes: it compiles in half the time, and the
    # step of dada_quick takes 1 % longer.
    is_small = not _has_convolution(jaxpr) and sum(one.size for one in jaxpr.out_avals) < _FEW_NUMBERS
    options = {"xla_backend_optimization_level": 0} if is_small else {}
    return jax.jit(core.jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals).compile(options)


def _called(equation):
    """The jitted function that an equation calls, or None."""
    return equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None


def _equations(jaxpr):
    """All equations, those of called functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for called in core.jaxprs_in_params(equation.params):
            yield from _equations(called)


def _size(jaxpr):
    return sum(1 for _ in _equations(jaxpr))


def _has_convolution(jaxpr):
    return any(equation.primitive.name == "conv_general_dilated" for equation in _equations(jaxpr.jaxpr))


def _stages(jaxpr, passes):
    """(what some calls need, as a function; these calls), in order; last what only the results need."""
    level, calls, producer = {}, collections.defaultdict(list), {}
    for equation in jaxpr.eqns:
        at = max((level.get(v, 0) for v in _variables(equation.invars)), default=0)
        is_call = _called(equation) in passes
        if is_call:
            calls[at].append(equation)
        else:
            producer |= dict.fromkeys(equation.outvars, equation)
        level |= dict.fromkeys(equation.outvars, at + is_call)
    wanted = [[v for call in calls[at] for v in call.invars] for at in range(max(calls) + 1)]
    wanted.append(jaxpr.outvars)
    stage = {}  # by id of an equation, the first one that needs it
    for at, atoms in enumerate(wanted):
        waiting = list(_variables(atoms))
        while waiting:
            equation = producer.get(waiting.pop())
            if equation is not None and id(equation) not in stage:
                stage[id(equation)] = at
                waiting += _variables(equation.invars)
    for at in range(len(wanted)):
        before = [equation for equation in jaxpr.eqns if stage.get(id(equation)) == at]
        later = [e.invars for e in jaxpr.eqns if stage.get(id(e), at) > at]
        later = set(_variables(v for atoms in [*wanted[at:], *later] for v in atoms))
        given = dict.fromkeys(v for equation in before for v in equation.outvars)
        read = dict.fromkeys(_variables(v for equation in before for v in equation.invars))
        reads, gives = [v for v in read if v not in given], [v for v in given if v in later]
        about = core.DebugInfo("jit", f"stage {at}", None, None)
        yield core.Jaxpr([], reads, gives, before, debug_info=about), calls[at]


def _variables(atoms: Iterable[Any]):
    return (v for v in atoms if not isinstance(v, core.Literal))
