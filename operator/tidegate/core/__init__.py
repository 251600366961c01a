"""Decisions, and nothing but decisions: no clock, no network, no cluster. Time comes in as an argument."""
