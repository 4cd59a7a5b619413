"""Monitoring: what the server counted, as Prometheus text."""
