"""Pure functions, one per equation: tensors in, tensors out. Floor 1."""
