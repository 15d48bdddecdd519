"""The loss as a function of the parameters: what it is, and its first derivatives, over batches and ranks."""
