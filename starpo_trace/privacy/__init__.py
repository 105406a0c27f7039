"""Texts, JSON and messages -> the same without secrets, before anything leaves the process."""
