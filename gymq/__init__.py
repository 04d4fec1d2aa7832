"""gymq: agent rollouts on message queues."""
