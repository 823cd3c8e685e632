"""A tokenizer's folder as data tasks read it, without `transformers`."""
