"""Take images out of a data set: from its tables (`remove`), then from its shards (`compact`)."""
