"""The console command `isotorus COMMAND …`. Each command runs one of the packages as `python -m` would.

But `python -m` finds a pretrain.py in the current folder before the installed package, by Python's own rule.
This command does not, and neither do the processes that it starts.
"""

import runpy
import sys

from isotorus.processes import find_no_local_modules

COMMANDS = {
    "pack": ("data_pipeline pack", "pack images into WebDataset shards"),
    "index": ("data_pipeline index", "make a data set of existing WebDataset tars"),
    "verify": ("data_pipeline verify", "check a packed data set for damage"),
    "info": ("data_pipeline info", "show what a packed data set holds"),
    "preview": ("data_pipeline preview", "write a page of what the encoder will see"),
    "remove": ("data_pipeline remove", "take images out of a data set"),
    "compact": ("data_pipeline compact", "delete the bytes of removed images"),
    "name-channels": ("data_pipeline name-channels", "name the channels of a data set"),
    "who-saw": ("pretrain who-saw", "name the runs that trained on images"),
    "init": ("pretrain init", "write a recipe for a data set and a machine"),
    "recipes": ("pretrain recipes", "list the packaged recipes, or print one"),
    "plan": ("pretrain plan", "estimate what a run will cost"),
    "train": ("pretrain", "pretrain an encoder"),
    "sweep": ("pretrain sweep", "pretrain once for each point of a grid"),
    "watch": ("pretrain watch", "follow a run in the terminal"),
    "export": ("pretrain export", "export an encoder for other libraries"),
    "finetune": ("finetune", "train an encoder on labels"),
    "eval": ("eval_suite", "evaluate checkpoints"),
    "embed": ("eval_suite embed", "write the vectors of a data set to a file"),
    "search": ("eval_suite search", "find the images that are near to others"),
    "launch": ("launch", "start a run on many processes or nodes"),
}
"""Each command: what follows `python -m` to run the same thing, and a summary for the help text."""


def usage() -> str:
    rows = (f"  {name:14}{summary:45}= python -m {same}" for name, (same, summary) in COMMANDS.items())
    ending = "isotorus COMMAND --help shows the options of a command."
    return "\n".join(["usage: isotorus COMMAND …", "", *rows, "", ending])


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        print(f"error: no command '{command}'; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    find_no_local_modules()
    module, *first = COMMANDS[command][0].split()
    sys.argv = [f"python -m {module}", *first, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
