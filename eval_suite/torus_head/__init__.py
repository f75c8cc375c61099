"""Commands about torus heads, whose output is angles: winding numbers, discrete codes, near-duplicates."""
