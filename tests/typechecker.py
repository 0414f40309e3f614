"""What checks the types of arguments and results in tests; pyproject.toml names it to jaxtyping."""

from beartype import BeartypeConf, beartype

# PEP 484: where a float is expected, an int will do.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
