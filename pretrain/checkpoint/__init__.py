"""Weights and state on disk, written and read."""

from pretrain.checkpoint.store import (
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

__all__ = [
    "CheckpointConfig",
    "Damaged",
    "OnDamage",
    "agreed_latest",
    "describe",
    "folder",
    "latest",
    "latest_described",
    "restore",
    "set_aside",
    "tidy",
]
