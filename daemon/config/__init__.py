"""Configuration: YAML, environment and flags become frozen settings, or a list of findings."""
