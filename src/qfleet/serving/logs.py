"""What a server says: one line an event on standard error, and nothing per request."""

from __future__ import annotations

import logging
import sys


def set_up_logs() -> None:
    """Warnings and worse of this package, errors of uvicorn, with the time.

    uvicorn warns of each client that sends no HTTP: whoever can connect could fill the log.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("qfleet.serving", logging.WARNING), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
