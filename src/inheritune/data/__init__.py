"""From text to the windows of tokens that a training step reads."""
