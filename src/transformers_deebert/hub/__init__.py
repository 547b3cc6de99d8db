"""What a checkpoint needs on the Hub beside its weights."""
