"""Turn images into shards and shards into batches: packing, sample order, crops, augmentation."""
