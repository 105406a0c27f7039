"""Recorded turns + a checkpoint -> what the checkpoint would have earned. Evidence, never a gate."""
