"""`launch kubernetes`: manifests of a run on a Kubernetes cluster."""

from launch.kubernetes.kubernetes_options import add_parser, start

__all__ = ["add_parser", "start"]
