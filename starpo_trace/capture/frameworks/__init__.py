"""One module per agent framework: where its agents and tools run. What that means: `capture.agents`."""
