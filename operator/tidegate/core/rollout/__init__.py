"""How traffic moves from the stable version to a candidate."""
