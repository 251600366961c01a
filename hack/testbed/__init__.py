"""The testbed: a real cluster with everything that Tidegate stands on. Start at __main__.py or README.md."""
