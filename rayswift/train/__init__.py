"""batches -> optimizer steps -> checkpoints."""
