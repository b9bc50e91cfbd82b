"""Training one model: loss, optimizer, schedule, step, checkpoints, and the loop that joins them."""
