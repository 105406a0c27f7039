"""Log-probabilities and advantages -> loss. One small file per loss; pure tensors in and out."""
