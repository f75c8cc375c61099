"""`isotorus <pack|train|eval|launch …>`: the four doors behind one console command."""

import runpy
import sys

DOORS = {
    "pack": ("data_pipeline", ["pack"]),
    "index": ("data_pipeline", ["index"]),
    "verify": ("data_pipeline", ["verify"]),
    "info": ("data_pipeline", ["info"]),
    "preview": ("data_pipeline", ["preview"]),
    "plan": ("pretrain", ["plan"]),
    "train": ("pretrain", []),
    "export": ("pretrain", ["export"]),
    "eval": ("eval_suite", []),
    "launch": ("launch", []),
}
USAGE = """usage: isotorus COMMAND …

  pack     images to WebDataset shards          = python -m data_pipeline pack
  index    the same for tars that are there     = python -m data_pipeline index
  verify   check shards against their index     = python -m data_pipeline verify
  info     what a packed data set holds         = python -m data_pipeline info
  preview  a page of what the encoder will see  = python -m data_pipeline preview
  plan     what a run will cost                 = python -m pretrain plan
  train    pretrain an encoder                  = python -m pretrain
  export   an encoder for timm or transformers  = python -m pretrain export
  eval     evaluate checkpoints                 = python -m eval_suite
  launch   start a run on many processes        = python -m launch

isotorus COMMAND --help tells more."""


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in DOORS:
        print(f"error: no command '{command}'; one of {', '.join(DOORS)}", file=sys.stderr)
        return 2
    module, first = DOORS[command]
    sys.argv = [f"python -m {module}", *first, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
