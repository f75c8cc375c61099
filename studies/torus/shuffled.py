"""`python -m studies.torus.shuffled …`: pretrain with the turns of other images, as a negative control.

It takes the arguments of `isotorus train`. In each view an image's angles are turned back by the turn of the
next image of the batch, so nothing ties an image to its own turn. Which image is next depends on the number
of processes: use one.
"""

import sys

from torch import Tensor

from isotorus.errors import exit_code
from pretrain.__main__ import main
from pretrain.methods.torus import TorusHead

known = TorusHead._known


def of_the_next(self: TorusHead, actions: Tensor) -> Tensor:
    """Return what is taken back from the angles of each image: the turns of the next image."""
    return known(self, actions).roll(1, dims=1)


if __name__ == "__main__":
    TorusHead._known = of_the_next  # type: ignore[method-assign]
    sys.exit(exit_code(main))
