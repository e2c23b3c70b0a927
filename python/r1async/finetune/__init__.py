"""Training on data that is there, without a buffer: supervised fine-tuning and the preference reward model."""
