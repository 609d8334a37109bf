"""Fine-tuning: the losses and the training loop."""
