"""The comparison of layer selectors: ground truth by exhaustive search, every criterion, equal distillation."""
