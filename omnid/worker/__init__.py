"""What runs inside child processes; each file is on its own there."""
