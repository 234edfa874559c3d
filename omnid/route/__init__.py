"""Decisions about what starts where; pure, without I/O."""
