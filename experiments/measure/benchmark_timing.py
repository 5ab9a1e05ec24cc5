"""How the parts of the benchmark measure: contenders in turn, several steps at once, memory.

Contract: a contender is a function without arguments. Its first call, which may compile, is never counted;
then the contenders take turns, so that what slows the machine down for a while slows all of them.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import tqdm

from experiments.runs import compiled_loop, compiled_parts

STEPS_AT_ONCE = 16  # on an accelerator, where steps are scanned


def alternating(
    contenders: dict[str, Callable[[], Any]], *, rounds: int, label: str, least_seconds: float = 0.1
) -> dict[str, float]:
    """Seconds of a call of each contender: medians over rounds in which all take their turn.

    A turn has as many calls as take `least_seconds`, and one or more; `label` is that of the progress bar.
    """
    repeats = {}
    for name, call in contenders.items():
        jax.block_until_ready(call())
        repeats[name] = 1
        if least_seconds:
            repeats[name] = max(1, math.ceil(least_seconds / _seconds(call, 1)))
    seconds = {name: [] for name in contenders}
    for _ in tqdm.tqdm(range(rounds), desc=label, leave=False, dynamic_ncols=True):
        for name, call in contenders.items():
            seconds[name].append(_seconds(call, repeats[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def _seconds(call, repeats):
    """Seconds of a call, the mean of some that follow each other without a wait in between."""
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def steps_at_once() -> int:
    """Steps that one call of `compiled_steps` takes."""
    return STEPS_AT_ONCE if compiled_loop.scans() else 1


def compiled_steps(step: Callable, state: Any, *arguments: Any) -> tuple[Callable, float]:
    """Compiles `steps_at_once` steps, (state, *arguments) -> (state, metrics), as a run takes them.

    Returns (program of the same arguments, seconds that this took).
    """

    def scanned(state, *arguments):
        return jax.lax.scan(lambda state, _: step(state, *arguments), state, length=STEPS_AT_ONCE)

    return compiled_loop.compiled(scanned if compiled_loop.scans() else step, state, *arguments)


def parts_and_whole(step: Callable, parts: Any, seconds: float, *arguments: Any) -> dict[str, float]:
    """What compiling a step in parts, which took `seconds`, saves: it is compiled as one program beside.

    Empty where the step has no parts, as on an accelerator.
    """
    if not isinstance(parts, compiled_parts.Parts):
        return {}
    start = time.perf_counter()
    whole = jax.jit(step).lower(*arguments).compile()
    ratio = seconds / (time.perf_counter() - start)
    # Lines of HLO with a result; those inside of fusions and loops are among them.
    sizes = {
        f"{form}_instructions": program.as_text().count(" = ")
        for form, program in (("parts", parts), ("whole", whole))
    }
    return {"parts_over_whole_compile": ratio, **sizes}


def peak_memory() -> int | None:
    """Bytes that this process had on the first device at most; None where the backend does not count."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def memory(program: Any, peak_before: int | None) -> dict[str, Any]:
    """Bytes that a program, which was run since `peak_memory` gave `peak_before`, takes, and who says so.

    The peak is that of the whole process, so it says something of the program only if it rose.
    """
    peak = peak_memory()
    if peak is not None and peak_before is not None and peak > peak_before:
        return {"peak_memory_bytes": peak, "peak_memory_source": "device"}
    analysis = program.memory_analysis()
    if analysis is None:
        return {"peak_memory_bytes": None, "peak_memory_source": None}
    total = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    return {"peak_memory_bytes": total, "peak_memory_source": "compiler: temporary + arguments"}
