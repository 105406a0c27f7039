"""Installation, environment and what was recorded -> what is recorded, and what would be missing."""
