"""`launch slurm`: a run as a Slurm job."""

from launch.slurm.slurm_options import add_parser, start

__all__ = ["add_parser", "start"]
