"""Where counts come from: the gateway itself, and what looks at it regularly."""
