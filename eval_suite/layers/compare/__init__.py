"""`eval compare`: how alike two encoders are, layer by layer, on the same images and without labels.

`command` is the sub-command. `vectors` makes the vectors of every layer, `similarity` compares two clouds of
them, `pairs` compares all layers beside two baselines, `conclusion` says in words what was found, and `page`
draws it.
"""
