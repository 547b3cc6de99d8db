"""Running trained models: outside PyTorch, and for many requests."""
