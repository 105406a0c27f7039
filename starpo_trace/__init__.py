"""Record LLM agent runs as OpenTelemetry trajectories."""
