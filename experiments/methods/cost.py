"""What a search step costs, in plain training steps of the same network."""

import statistics
import time
from typing import Any

from experiments.runs import compiled_loop


def plain_step_ratio(task: Any, search: Any, plain: Any, state: Any, key: Any, rounds: int = 3) -> float:
    """Seconds of a search step over those of a plain training step, alternating, medians of `rounds`.

    Args:
      task: method.Task.
      search: method.Steps of the search itself.
      plain: those of the yardstick.
      state: a state of the search.
      key: of the batches.
      rounds: each times one search step and two plain steps (on an accelerator, an epoch of each).
    """
    count = task.method.next_stop(task.config, 0) if compiled_loop.scans() else 1
    seconds = {search: [], plain: []}
    for number in range(rounds + 1):
        for programs, repeats in ((search, 1), (plain, 2)):
            start = time.perf_counter()
            for _ in range(repeats):
                list(programs.run(state, key, task.data, count))
            if number:  # the first round compiles, and touches all memory once
                seconds[programs].append((time.perf_counter() - start) / repeats)
    return statistics.median(seconds[search]) / statistics.median(seconds[plain])
