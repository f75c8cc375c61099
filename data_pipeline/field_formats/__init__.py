"""Files of medicine, astronomy and microscopy: read by the library of the field, stored as TIFF in shards.

`formats` tells which format a file has and opens it. Each format has a module of its own with a function
`read`, which yields `picture.Picture`. The libraries are extras, imported when such a file comes.
"""
