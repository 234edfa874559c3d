"""Executors: the ways to get work done, behind one interface."""
