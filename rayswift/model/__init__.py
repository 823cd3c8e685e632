"""What lies in a model's folder: what kind of model it is, and what can be done with it."""
