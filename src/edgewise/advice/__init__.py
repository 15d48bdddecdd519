"""What a model bears, found by a trial that leaves no trace."""
