"""`python -m studies.quickstart.train …`: `python -m pretrain …` with convolutions in channels-last memory.

On CPUs this takes less time; the numbers are the same up to rounding.
"""

import sys
import time

import torch
from torch import Tensor

from isotorus.errors import exit_code
from pretrain.__main__ import main
from pretrain.models.encoder import ViewEncoder

_forward = ViewEncoder.forward


def _channels_last(self: ViewEncoder, views: list[Tensor], keys: Tensor) -> Tensor:
    self.encoder.to(memory_format=torch.channels_last)
    ordered = []
    for x in views:
        flat = x.flatten(0, 1).to(memory_format=torch.channels_last)
        ordered.append(flat.unflatten(0, x.shape[:2]))
    return _forward(self, ordered, keys)


if __name__ == "__main__":
    ViewEncoder.forward = _channels_last  # type: ignore[method-assign]
    try:
        code = exit_code(main)
    finally:
        print(f"cpu seconds: {time.process_time():.1f}", file=sys.stderr)
    sys.exit(code)
