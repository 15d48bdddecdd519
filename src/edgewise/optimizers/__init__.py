"""What an optimizer does with a gradient: its groups' rates, its preconditioner, its update, its stability limit."""
