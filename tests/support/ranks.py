"""Several processes for tests of what is distributed: they are heard of when they fail, and ended when they hang."""

from __future__ import annotations

import faulthandler
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

SECONDS = 130  # twice as long is within what pytest allows a test


def run_ranks(function: Callable[..., None], *args: Any, world_size: int = 2) -> None:
    """function(rank, *args) in world_size processes that are a gloo group; raises what one of them raises.

    A process that takes longer than SECONDS prints the stacks of its threads and ends. That may happen once: two groups
    never came to an end, the second in spite of gloo's own time limit, and the reason was not found.
    """
    try:
        _spawn(function, world_size, args)
    except ProcessExitedException as error:  # no Python exception: the stacks are on stderr
        warnings.warn(f"ranks hung or died, second attempt: {error}", stacklevel=2)
        _spawn(function, world_size, args)


def _spawn(function: Callable[..., None], world_size: int, args: tuple[Any, ...]) -> None:
    # A store of ours and the loopback device: neither files that are locked nor the machine's own name are needed.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_rank, (function, store.port, world_size, args), nprocs=world_size)


def _rank(rank: int, function: Callable[..., None], port: int, world_size: int, args: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    limit = timedelta(seconds=SECONDS - 30)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    function(rank, *args)
    dist.barrier()  # nobody leaves while another one still waits for its answer
    sys.stdout.flush()
    os._exit(0)  # what comes at the end of a process is not under test, and may be where groups once hung
