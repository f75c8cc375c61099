"""Checkpoints on disk: written, read, used as first weights, and exported for other libraries."""

from pretrain.checkpoint.store import (  # noqa: F401, for `from pretrain import checkpoint`
    CheckpointConfig,
    Damaged,
    OnDamage,
    agreed_latest,
    describe,
    folder,
    latest,
    latest_described,
    restore,
    set_aside,
    tidy,
)
