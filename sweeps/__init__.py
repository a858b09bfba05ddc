"""What to run next: the runs between two others, a seed more of an arm, the next proposal."""
