"""One of several serving processes: python -m qfleet.serving.worker INDEX FILE_DESCRIPTOR.

Server and worker are one user's: the settings come in the environment.
"""

from __future__ import annotations

import os
import socket
import sys

from qfleet.errors import QfleetError
from qfleet.serving.logs import set_up_logs
from qfleet.serving.server import ENVIRONMENT, serve
from qfleet.serving.settings import Settings


def main() -> None:
    """Serve on the socket that the parent opened."""
    index, descriptor = int(sys.argv[1]), int(sys.argv[2])
    # Out of the environment at once: it holds the token, and whatever this process starts need not know it.
    settings = Settings.of_json(os.environ.pop(ENVIRONMENT))
    set_up_logs()
    try:
        serve(settings, socket.socket(fileno=descriptor), index)
    except QfleetError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
