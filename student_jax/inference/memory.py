"""Memory that stylising may take."""

MAX_MEMORY = 4 * 2**30
"""In bytes, unless somebody says otherwise."""
