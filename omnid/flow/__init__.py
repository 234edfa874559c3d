"""The way of a task: intake, dispatch, results, recovery. Decides with pure functions and does the I/O."""
