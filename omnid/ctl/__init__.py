"""`omnictl`, the command line for people. Standard library and `omnid.api.client` only."""
