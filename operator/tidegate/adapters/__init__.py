"""The only I/O: the cluster's API, kopf's watches, metrics, probes."""
