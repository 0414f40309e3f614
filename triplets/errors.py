"""The base of every error that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Something given from outside cannot be used; the message is one sentence that says why.

    Commands print the message without a traceback; every other exception is a defect of ours.
    """
