"""Deterministic simulation: the real flow and the real store on virtual time, with faults drawn from a seed."""
