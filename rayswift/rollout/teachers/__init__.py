"""Teachers beside the trainer: who scores the tokens of completions, in token ids, never as text."""
