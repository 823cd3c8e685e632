"""A tokenizer's folder as data tasks read it, without `transformers`: special tokens, chat template, frame of a text."""
