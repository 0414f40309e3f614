"""The default student, for whoever has no need of JAX yet."""

DEFAULT_STUDENT = "modulated"
"""The bundled student that is used where none is named."""
