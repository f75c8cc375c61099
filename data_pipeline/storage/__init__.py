"""Read bytes from local disks and object stores: files, ranges, tar files, and a local cache."""
