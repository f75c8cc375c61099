"""Jobs of Slurm."""

from launch.slurm.slurm_options import (
    add_parser,
    start,
)

__all__ = ["add_parser", "start"]
