"""What omnid knows of the agents it runs: one profile each, as data."""
