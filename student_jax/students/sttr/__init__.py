"""STTR as its paper has it."""
