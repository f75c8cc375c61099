"""`python -m studies.quickstart.train …`: `python -m pretrain …`, which says at the end what it has cost."""

import sys
import time

from isotorus.errors import exit_code
from pretrain.__main__ import main

if __name__ == "__main__":
    try:
        code = exit_code(main)
    finally:
        print(f"cpu seconds: {time.process_time():.1f}", file=sys.stderr)
    sys.exit(code)
