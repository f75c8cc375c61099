"""`python -m studies.torus.angles RUN SHARDS OUT.json`: the lines of a certificate that are about angles.

They are those of `isotorus eval certificate`, on 1,000 images and with 24 samples of a turn. Orbits and what
stands beside are left out, because they take most of its time.
"""

import json
import sys
from pathlib import Path

from data_pipeline.dataset.index import Dataset
from eval_suite.inputs import find
from eval_suite.torus_head.certificate import beside, unseen
from eval_suite.torus_head.certificate.measure import How, of_angles
from eval_suite.torus_head.certificate.unseen import Images
from isotorus.errors import UserError, exit_code


def main() -> int:
    """Write OUT.json."""
    if len(sys.argv) != 4:
        raise UserError("expected a run, packed images that it has not seen, and a file to write")
    (checkpoint,), data = find.find([sys.argv[1]]), Dataset(sys.argv[2])
    torus = beside.actions_of(checkpoint)
    how = How(samples=1_000, steps=24)
    encoder = beside.trained(checkpoint, torus.size)
    samples = unseen.draw(data, how.samples, how.seed)
    pixels = unseen.read(data, samples, encoder.channels, encoder.size, encoder.square)
    images = Images(pixels, tuple(torus.actions), torus.border)
    changed = Images(pixels[: how.images], images.actions, images.border).changed()
    numbers = of_angles(encoder, images, tuple(torus.orders), changed, how).numbers
    for cloud in numbers["angles"]["clouds"]:
        for long in ("homology", "evidence", "measured"):
            cloud.pop(long, None)
    Path(sys.argv[3]).write_text(json.dumps(numbers, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
