"""Observation: events of what happens in a process, and the logs, metrics and traces that are made of them."""
