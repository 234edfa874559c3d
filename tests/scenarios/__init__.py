"""The four ways to be offline, at length: real brokers, a daemon, a runner and two clients, and faults among them."""
