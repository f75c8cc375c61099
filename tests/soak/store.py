"""An S3 store that fails when a file says so: `python -m tests.soak.store FOLDER FAULT_FILE PORT`."""

import sys
import time
from pathlib import Path

from tests.data_pipeline import s3_server
from tests.data_pipeline.s3_server import S3Server
from tests.faults.proxy import Proxy

FAULTS = ("answers 503", "is slow", "is full", "loses answers")


def apply(fault: str, proxy: Proxy) -> None:
    """Make the store have this fault alone; "" is none."""
    proxy.status = 503 if fault == "answers 503" else None
    proxy.delay = 3.0 if fault == "is slow" else 0.0
    proxy.full = fault == "is full"
    proxy.loses = "" if fault == "loses answers" else None


def main(folder: Path, file: Path, port: int) -> None:
    s3_server._STARTS_WITHIN = 600  # on a busy machine
    server = S3Server(folder)
    server.start()
    with Proxy(server.endpoint, "0.0.0.0", port) as proxy:
        Path("/run/store").touch()
        while True:
            apply(file.read_text(), proxy)
            proxy.asked.clear()
            time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
