"""How the geometry of every block changes through depth and over training: a block × checkpoint matrix.

`command` is the door, `quantities` and `cost` say what can be measured and how long it takes, `series` goes
through checkpoints, `measure` measures one, `page` draws. What is measured, one idea a file: `blocks` what
the blocks are and what passes through them, `maps` a block as a map, `units` its activations, `rings` circles
among its features, `weights` its matrices, `hessian` the loss around them.
"""
