"""Images to shards to batches: packing, a stateless order, views and augmentation."""
