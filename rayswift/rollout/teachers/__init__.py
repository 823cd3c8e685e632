"""Teachers outside the workers: they score the tokens of completions, as token ids, never as text."""
