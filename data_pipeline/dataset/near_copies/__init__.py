"""Near copies among any number of images: the same picture after another encoding, size or brightness."""
