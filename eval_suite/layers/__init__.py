"""The geometry of every block of an encoder over training, as a table of checkpoints by blocks.

`command` is the sub-command and `series` goes through the checkpoints. `measure` measures one of them with
`blocks` (what passes through the blocks), `derivatives`, `units` (activations), `rings` (circles among the
features), `weights` and `bending` (paths of augmented images). `quantities` lists what can be measured, and
`page` draws it.
"""
