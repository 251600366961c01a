"""Operating characteristics by simulation: how often a rule for rollouts is wrong, how long it takes, what it costs."""
