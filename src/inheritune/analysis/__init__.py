"""What attention matrices say about a model: ranks, masses, lazy layers."""
