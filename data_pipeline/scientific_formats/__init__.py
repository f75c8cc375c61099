"""Files of medicine, astronomy and microscopy: a library of the field reads them, and shards hold TIFF files.

`formats` tells which format a file has and opens it. Each format has a module of its own with a function
`read`, which yields `picture.Picture`. The libraries are extras; each is imported when the first file of its
format is read.
"""
