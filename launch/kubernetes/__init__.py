"""Manifests for Kubernetes."""

from launch.kubernetes.kubernetes_options import (
    add_parser,
    start,
)

__all__ = ["add_parser", "start"]
