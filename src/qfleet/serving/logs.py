"""What a server says: one line an event on standard error, and nothing per request."""

from __future__ import annotations

import logging
import sys


def set_up_logs() -> None:
    """Warnings and worse of this package and of uvicorn, with the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("qfleet.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
