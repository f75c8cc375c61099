"""Features of images: what an encoder computes from them."""
