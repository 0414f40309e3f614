"""Training a student on triplets."""
