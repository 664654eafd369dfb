"""Work spread over processes of one thread each, with a progress bar that tells the time left.

On a CPU, and for matrices of this size, N processes with one thread beat one process with N threads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Item = TypeVar("Item")
Task = TypeVar("Task")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

_shared: Any = None
"""What all tasks of this worker process have in common; sent once a process, not once a task."""


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Items that come one by one as tasks of up to `size` of them."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_tasks(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Sequence[Task],
    *,
    jobs: int,
    label: str,
    unit: str,
    size: Callable[[Task], int] = lambda task: 1,
) -> list[Result]:
    """`function(shared, task)` for every task, in the order of the tasks. `size` is a task's share of the bar."""
    results: dict[int, Result] = {}
    with (
        tqdm(total=sum(map(size, tasks)), desc=label, unit=unit, dynamic_ncols=True, smoothing=0.05) as bar,
        ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), initializer=_start_worker, initargs=(shared,)) as pool,
    ):
        pending = {pool.submit(_call, function, task): index for index, task in enumerate(tasks)}
        try:
            for future in as_completed(pending):
                results[pending[future]] = future.result()
                bar.update(size(tasks[pending[future]]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(len(tasks))]


def _start_worker(shared: Any) -> None:
    global _shared
    _shared = shared
    torch.set_num_threads(1)


def _call(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_shared, task)
