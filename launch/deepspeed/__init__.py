"""`launch deepspeed`: ranks started by DeepSpeed's launcher."""

from launch.deepspeed.deepspeed_options import add_parser, start

__all__ = ["add_parser", "start"]
