"""What lies in a model's folder: what kind of model it is, what can be done with it, and what it says of itself."""
