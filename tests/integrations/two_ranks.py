"""Two processes of one group, each with its rank in the environment; the script ends with 1 where one fails."""

from __future__ import annotations

import os
import socket
import sys
import traceback


def on_two_ranks(run):
    """``run(number)`` in each process."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(port.getsockname()[1])
    children = []
    for number in range(2):
        if (child := os.fork()) == 0:
            try:
                os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
                run(number)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)
