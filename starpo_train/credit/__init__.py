"""Rewards -> advantages. One small file per estimator; pure tensors in and out."""
