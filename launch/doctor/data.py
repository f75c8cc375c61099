"""Check that every node can read the shards, and that all read the same data."""

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from isotorus.errors import UserError
from launch.doctor.findings import ByHost, Facts, Finding, Status, grouped, ok

if TYPE_CHECKING:
    from pretrain.config import DataConfig

_SHARDS = 64
"""The number of shards of a data set, evenly spaced, from which one image is read."""


def measure(data: "DataConfig") -> Facts:
    """Read one image from each of some shards, and compare it with its checksum as training does."""
    try:
        sources = data.open()
        digest, images, begun = hashlib.sha256(), 0, time.perf_counter()
        for dataset in sources.datasets:
            shards = np.unique(np.linspace(0, len(dataset.shards) - 1, _SHARDS).astype(int))
            for row in dataset.shards[shards]:
                image = dataset.read(int(row["first"]) + int(row["samples"]) // 2)
                digest.update(image)
                images += 1
        seconds = time.perf_counter() - begun
    except UserError as error:
        return {"error": str(error)}
    return {
        "fingerprint": sources.fingerprint,
        "digest": digest.hexdigest(),
        "images": images,
        "milliseconds": 1e3 * seconds / images,
    }


def judge(facts: ByHost) -> list[Finding]:
    """Return the findings about the data, with the hosts that read other data than most."""
    unreadable = {host: (own["error"], "") for host, own in facts.items() if "error" in own}
    findings = grouped("data", Status.FAILED, unreadable)
    read = {host: own for host, own in facts.items() if "error" not in own}
    by_data: dict[tuple[str, str], list[str]] = {}
    for host, own in read.items():
        by_data.setdefault((own["fingerprint"], own["digest"]), []).append(host)
    if len(by_data) > 1:
        usual = max(by_data, key=lambda key: len(by_data[key]))
        odd = [host for key, hosts in by_data.items() if key != usual for host in hosts]
        prints = ", ".join(sorted({key[0] for key in by_data if key != usual}))
        observed = f"another data set ({prints}) than on the other hosts ({usual[0]})"
        remedy = "bring the same shards there; isotorus verify shows which are right"
        findings.append(Finding("data", Status.FAILED, odd, observed, remedy))
    if findings or not read:
        return findings
    one = next(iter(read.values()))
    slowest = max(read, key=lambda host: read[host]["milliseconds"])
    return ok(
        "data",
        f"fingerprint {one['fingerprint']}; {one['images']} images from as many shards, slowest on "
        f"{slowest}: {read[slowest]['milliseconds']:.1f} ms an image",
    )
