"""What is to be learnt: sequences, targets and what guessing scores, in NumPy alone."""
