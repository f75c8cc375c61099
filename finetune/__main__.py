"""`python -m finetune CHECKPOINT SHARDS --val SHARDS --out FOLDER`, alone or under torchrun."""

import sys

from finetune.command import main
from isotorus.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
