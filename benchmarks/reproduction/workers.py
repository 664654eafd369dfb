"""How processes that help are started."""

import multiprocessing
from multiprocessing.context import BaseContext


def worker_context(*modules: str) -> BaseContext:
    """Processes that start clean, with `modules` imported once for all: a fork of one with threads, as tokenizers have, may hang.

    Where the system has no such start (Windows), its own way.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
