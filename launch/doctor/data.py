"""Shards: readable from every node, and the same there."""

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from isotorus.errors import UserError
from launch.doctor.findings import ByHost, Facts, Finding, Status, alike, ok

if TYPE_CHECKING:
    from pretrain.config import DataConfig

_SHARDS = 64
"""Of a data set, evenly spaced, from which an image is read."""


def measure(data: "DataConfig") -> Facts:
    """An image of each of some shards, compared with the index's checksum as training does."""
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
    unreadable = {host: (own["error"], "") for host, own in facts.items() if "error" in own}
    findings = alike("data", Status.FAILED, unreadable)
    read = {host: own for host, own in facts.items() if "error" not in own}
    by_print: dict[tuple[str, str], list[str]] = {}
    for host, own in read.items():
        by_print.setdefault((own["fingerprint"], own["digest"]), []).append(host)
    if len(by_print) > 1:
        usual = max(by_print, key=lambda key: len(by_print[key]))
        odd = [host for key, hosts in by_print.items() if key != usual for host in hosts]
        prints = ", ".join(sorted({key[0] for key in by_print if key != usual}))
        found = f"another data set ({prints}) than on the other hosts ({usual[0]})"
        remedy = "bring the same shards there; python -m data_pipeline verify tells which are right"
        findings.append(Finding("data", Status.FAILED, odd, found, remedy))
    if findings or not read:
        return findings
    one = next(iter(read.values()))
    slowest = max(read, key=lambda host: read[host]["milliseconds"])
    return ok(
        "data",
        f"fingerprint {one['fingerprint']}; {one['images']} images from as many shards, slowest on "
        f"{slowest}: {read[slowest]['milliseconds']:.1f} ms an image",
    )
