"""What a step, the loss, a batch, a start, a save, a judgement and building pairs cost in time and memory."""
