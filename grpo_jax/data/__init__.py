"""Files in, padded or packed NumPy out; every iterator can resume."""
