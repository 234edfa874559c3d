"""omnid: a small daemon that takes tasks, never loses one, and gets each done by the cheapest route that works."""

__version__ = "0.1.0"
