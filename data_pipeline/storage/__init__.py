"""Bytes of shards, from disks and object stores."""
