"""What the scripts do besides training: a file a command, or a few that open the same runs."""
