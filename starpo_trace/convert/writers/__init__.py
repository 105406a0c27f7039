"""Dataset -> files that other trainers and tools read, one module for each form."""
