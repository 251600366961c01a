"""The loop: a keyed queue, and gather → decide → write for each key."""
