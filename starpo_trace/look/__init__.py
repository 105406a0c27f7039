"""Dataset -> numbers about it, the story of each trajectory, and one page to look at both."""
