"""Everything that travels to the Hub with a checkpoint: configurations, models, off-ramps, the layer loop."""
