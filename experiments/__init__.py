"""What a script's loop trains and measures: a file an experiment, on the contract in experiment."""
